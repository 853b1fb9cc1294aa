# docker build --target cpu --build-arg TORCH_INDEX=URL -t xd3d:cpu .   (URL: PyTorch's index of CPU wheels)
# docker build --target cuda -t xd3d:cuda .                             then: docker run --gpus all -v DATA:/data xd3d:cuda
FROM python:3.11-slim AS source
WORKDIR /opt/xd3d
COPY . .
ENV PIP_NO_CACHE_DIR=1 XD3D_HOME=/data/xd3d-work

FROM source AS cpu
ARG TORCH_INDEX
RUN pip install --index-url "${TORCH_INDEX:?give the index of the CPU wheels of PyTorch}" "$(grep '^torch==' constraints.txt)" \
    && pip install --constraint constraints.txt .
WORKDIR /data
ENTRYPOINT ["xd3d"]

FROM source AS cuda
RUN pip install --constraint constraints.txt .
WORKDIR /data
ENTRYPOINT ["xd3d"]
