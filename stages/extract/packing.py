"""CPU inference with weights prepacked in oneDNN's layout, and with fused operations.

In half precision the weights of a full-size UNet are 1.7 GB, and torch reorders them for each image. The packed kernels
round differently, so they are not used in float32, which matches stock diffusers bit for bit.
"""

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, scaled_dot_product_attention, silu

__all__ = ["pack_layers"]

TOLERANCE = 0.05  #: largest deviation from the stock layer, in standard deviations of its output
MANY_CELLS = 1024  #: cells from which attention by explicit matrix products is faster
SCORES_PER_BLOCK = 1 << 21  #: attention scores per block, to stay in the processor's cache
KEY_STRIDE = 8  #: the largest score of a row is estimated from every so many keys

Pack = Callable[..., Callable[..., Tensor]]  #: (layer, first inputs) -> replacement of the method


def pack_layers(model: nn.Module, tapped: Collection[nn.Module] = (), *, in_place: bool = False) -> None:
    """Makes the convolutions and linear layers of ``model`` pack their weights at their first call.

    ResNets also fuse the shortcut into their last convolution, unless they contain a module of ``tapped``; ``in_place``
    allows them to overwrite their input. A layer that cannot be packed on this machine, or gives other values when
    packed, is not changed.
    """
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.upsampling import Upsample2D

    inside = set(tapped)
    for module in model.modules():
        layer: Any = module
        kind: Any = type(module)
        if kind is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            _pack_on_first_call(layer, PackedConvolution)
        elif kind is nn.Linear:
            _pack_on_first_call(layer, PackedLinear)
        elif kind is GEGLU:
            _pack_on_first_call(layer, PackedGeglu)
        elif (
            kind is ResnetBlock2D and _is_standard_resnet(layer) and not inside.intersection(list(layer.modules())[1:])
        ):
            _pack_on_first_call(layer, partial(FusedResnet, in_place=in_place))
        elif kind is Transformer2DModel:
            _pack_on_first_call(layer, _channels_last_output, "_get_output_for_continuous_inputs")
        elif kind is Attention and _is_standard_attention(layer):
            _pack_on_first_call(layer, _channels_last_attention if layer.group_norm else FixedTextAttention)
        elif kind is Downsample2D and layer.use_conv and layer.padding == 0 and layer.norm is None:
            _pack_on_first_call(layer, _padded_downsampling)
        elif kind is Upsample2D and layer.use_conv and layer.interpolate and layer.norm is None:
            _pack_on_first_call(layer, FoldedUpsampling)


class PackedConvolution:
    """A convolution with weights in oneDNN's layout for inputs of one shape, in channels-last format."""

    def __init__(self, conv: nn.Conv2d, inputs: Tensor) -> None:
        self._geometry: list[Any] = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self._geometry, list(inputs.shape)
        )
        self.bias = conv.bias

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.with_bias(self.bias, inputs)

    def with_bias(self, bias: Tensor | None, inputs: Tensor) -> Tensor:
        """Applies the convolution with another bias."""
        return torch.ops.mkldnn._convolution_pointwise(
            _channels_last(inputs), self._weight, bias, *self._geometry, "none", [], ""
        )

    def add_to(self, total: Tensor, inputs: Tensor) -> Tensor:
        """Adds the result to ``total`` in place."""
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            total, _channels_last(inputs), self._weight, self.bias, *self._geometry, "add", 1.0, None, [], None
        )


class PackedLinear:
    """A linear layer with weights in oneDNN's layout for the number of rows of ``inputs``."""

    def __init__(self, linear: nn.Linear, inputs: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), inputs[..., 0].numel())
        self._bias = linear.bias

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")


class PackedGeglu:
    """A GEGLU layer as two packed linear layers with fused GELU and multiplication."""

    def __init__(self, block: Any, inputs: Tensor) -> None:
        rows = inputs[..., 0].numel()
        halves = block.proj.weight.detach().chunk(2)
        self._value, self._gate = (torch.ops.mkldnn._reorder_linear_weight(half.contiguous(), rows) for half in halves)
        self._value_bias, self._gate_bias = (half.contiguous() for half in block.proj.bias.detach().chunk(2))

    def __call__(self, inputs: Tensor) -> Tensor:
        gate = torch.ops.mkldnn._linear_pointwise(inputs, self._gate, self._gate_bias, "gelu", [], "none")
        return torch.ops.mkldnn._linear_pointwise.binary(inputs, gate, self._value, self._value_bias, "mul")


class FixedTextAttention:
    """An attention layer with precomputed keys and values of the text, which is constant."""

    def __init__(self, attention: Any, _inputs: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> None:
        self._attention = attention
        self._text = None if encoder_hidden_states is None else self._keys_and_values(encoder_hidden_states[:1])

    def __call__(self, inputs: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        query = _heads(self._attention, self._attention.to_q(inputs))
        key, value = (part.expand(len(inputs), -1, -1, -1) for part in self._text or self._keys_and_values(inputs))
        return self._attention.to_out[0](_attend(query, key, value).transpose(1, 2).flatten(2))

    def _keys_and_values(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        attention = self._attention
        return _heads(attention, attention.to_k(inputs)), _heads(attention, attention.to_v(inputs))


class FoldedUpsampling:
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution, as four 2x2 convolutions of the small map.

    A 3x3 window of the large map covers only 2x2 different cells, so weights on the same cell are added. Which weights
    these are depends on the parity of row and column: 4 products per output instead of 9.
    """

    def __init__(self, block: Any, inputs: Tensor, output_size: tuple[int, int] | None = None) -> None:
        conv, doubled = block.conv, tuple(2 * side for side in inputs.shape[2:])
        if (conv.kernel_size, conv.padding, conv.groups) != ((3, 3), (1, 1), 1) or tuple(
            output_size or doubled
        ) != doubled:
            raise RuntimeError("it is no 3x3 convolution of a map of twice the size")
        weights = _folded(_folded(conv.weight.detach().float(), 2), 3).to(inputs)  # [column, row, out, in, 2, 2]
        four = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 2, padding=1, bias=conv.bias is not None)
        four.weight = nn.Parameter(weights.flatten(0, 2).contiguous(memory_format=torch.channels_last), False)
        if conv.bias is not None:
            four.bias = nn.Parameter(conv.bias.detach().repeat(4), False)
        self._conv = PackedConvolution(four, inputs)

    def __call__(self, inputs: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        batch, _, height, width = inputs.shape
        found = self._conv(inputs).view(batch, 2, 2, -1, height + 1, width + 1)
        doubled = found.new_empty(batch, height, 2, width, 2, found.shape[3])
        for row in (0, 1):
            for column in (0, 1):
                cells = found[:, column, row, :, row : row + height, column : column + width]
                doubled[:, :, row, :, column] = cells.permute(0, 2, 3, 1)
        return doubled.reshape(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def _folded(weights: Tensor, dim: int) -> Tensor:
    """Adds the weights along ``dim`` that fall on the same cell, for even and for odd positions."""
    first, second, third = weights.unbind(dim)
    even, odd = (first, second + third), (first + second, third)
    return torch.stack([torch.stack(pair, -1) for pair in (even, odd)])


def _channels_last_attention(attention: Any, *_inputs: Tensor, **_: Any) -> Callable[..., Tensor]:
    """Self-attention of a map with its group norm, keeping the channels-last format."""

    def forward(inputs: Tensor, **_: Any) -> Tensor:
        norm = attention.group_norm
        maps = group_norm(_channels_last(inputs), norm.num_groups, norm.weight, norm.bias, norm.eps)
        cells = maps.flatten(2).transpose(1, 2)
        projections = (attention.to_q, attention.to_k, attention.to_v)
        found = _attend(*(_heads(attention, project(cells)) for project in projections))
        answer = attention.to_out[0](found.transpose(1, 2).flatten(2))
        return inputs + answer.transpose(1, 2).view(inputs.shape)

    return forward


def _heads(attention: Any, values: Tensor) -> Tensor:
    return values.reshape(*values.shape[:2], attention.heads, -1).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of [B, heads, cells, width]; by explicit matrix products where torch's kernel is slower."""
    if query.shape[2] < MANY_CELLS or torch.cpu._is_amx_tile_supported() or not torch.cpu._is_avx512_bf16_supported():
        return scaled_dot_product_attention(query, key, value)
    found = torch.empty_like(query)
    for image in range(query.shape[0]):
        for head in range(query.shape[1]):
            at = image, head
            _attend_by_products(query[at] * query.shape[-1] ** -0.5, key[at], value[at].contiguous(), found[at])
    return found


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, found: Tensor) -> None:
    """Fills ``found`` [cells, width] for scaled queries, block by block.

    The scores are rounded to half precision, which is most precise near zero. An extra column therefore subtracts from
    each row an estimate of its largest score; the softmax is invariant to that.
    """
    columns = torch.cat([key, torch.ones_like(key[:, :1])], 1).t().contiguous()
    few = columns[:-1, ::KEY_STRIDE].contiguous()
    for rows, filled in zip(*(torch.split(part, SCORES_PER_BLOCK // len(key)) for part in (query, found)), strict=True):
        scores = torch.cat([rows, -(rows @ few).amax(1, keepdim=True)], 1) @ columns
        torch.mm(torch.softmax(scores, 1, out=scores), value, out=filled)


class FusedResnet:
    """A ResNet block with the shortcut fused into its last convolution, and the constant time embedding in a bias."""

    def __init__(self, block: Any, _inputs: Tensor, temb: Tensor | None = None, *, in_place: bool) -> None:
        if not all(isinstance(conv.forward, PackedConvolution) for conv in (block.conv1, block.conv2)):
            raise RuntimeError("its convolutions are not packed")
        self._block, self._in_place = block, in_place
        self._bias = block.conv1.bias
        if temb is not None and block.time_emb_proj is not None:
            self._bias = self._bias + block.time_emb_proj(silu(temb))[0]

    def __call__(self, inputs: Tensor, temb: Tensor | None = None) -> Tensor:
        block = self._block
        first = block.conv1.forward.with_bias(self._bias, silu(block.norm1(inputs), inplace=True))
        branch = silu(block.norm2(first), inplace=True)
        if block.conv_shortcut is not None:
            return block.conv2.forward.add_to(block.conv_shortcut(inputs), branch)
        if self._in_place:
            return block.conv2.forward.add_to(inputs, branch)
        return inputs + block.conv2(branch)


def _channels_last_output(block: Any, **_: Any) -> Callable[..., Tensor]:
    """The output layer of a transformer block without diffusers' change of the memory format."""

    def end(
        hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if block.use_linear_projection:
            hidden_states = block.proj_out(hidden_states)
        maps = hidden_states.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2)
        return residual + (maps if block.use_linear_projection else block.proj_out(maps))

    return end


def _padded_downsampling(block: Any, _inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Strided convolution after zero padding at the bottom and the right; clears only the padding."""

    def forward(inputs: Tensor) -> Tensor:
        batch, channels, height, width = inputs.shape
        padded = inputs.new_empty(batch, height + 1, width + 1, channels).permute(0, 3, 1, 2)
        padded[:, :, :height, :width] = inputs
        padded[:, :, height:] = 0
        padded[:, :, :, width:] = 0
        return block.conv(padded)

    return forward


def _is_standard_attention(attention: Any) -> bool:
    """Returns whether an attention layer has only its projections, or also a group norm and a shortcut."""
    norms = (attention.spatial_norm, attention.norm_q, attention.norm_k, attention.norm_cross)
    joined = attention.residual_connection is (attention.group_norm is not None)
    return not any(norms) and joined and attention.rescale_output_factor == 1


def _is_standard_resnet(block: Any) -> bool:
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and block.output_scale_factor == 1
        and type(block.nonlinearity) is nn.SiLU
    )


def _pack_on_first_call(module: nn.Module, pack: Pack, method: str = "forward") -> None:
    setattr(module, method, partial(_first, module, pack, method))


def _first(module: nn.Module, pack: Pack, method: str, *inputs: Any, **named: Any) -> Tensor:
    """Packs the layer at its first call, and keeps the packed version if its output matches the stock layer."""
    delattr(module, method)  # the class's own again
    stock = getattr(module, method)(*inputs, **named)
    try:
        packed = pack(module, *inputs, **named)
        found = packed(*inputs, **named)
    except RuntimeError:  # oneDNN has no such kernel on this machine
        return stock
    spread = float(stock.float().std())  # not finite if the layer overflows: the extraction reports that
    if not math.isfinite(spread) or not torch.allclose(found, stock, rtol=TOLERANCE, atol=TOLERANCE * spread):
        return stock
    setattr(module, method, packed)
    return found


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last)
