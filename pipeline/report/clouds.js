// Interactive point clouds of a report: orbit, colours, hover. Points are drawn into a pixel buffer on a 2D canvas, so no
// WebGL is needed; the buffer of point numbers beside it answers which point the mouse is on.
"use strict";
(() => {
  const root = document.getElementById("clouds");
  const data = JSON.parse(document.getElementById("clouds-data").textContent);
  const decode = (text, Kind) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Kind(bytes.buffer);
  };
  const frames = data.frames.map((frame) => ({
    ...frame,
    points: decode(frame.points, Float32Array),
    truth: decode(frame.truth, Uint8Array),
    agents: decode(frame.agents, Uint16Array),
    runs: frame.runs.map((run) => ({
      classes: decode(run.classes, Uint8Array),
      probabilities: decode(run.probabilities, Uint8Array),
    })),
  }));
  const UNLABELLED = 255, NO_AGENT = 65535, GREY = [190, 190, 190];
  const RIGHT = [90, 170, 110], WRONG = [214, 39, 40], BACKGROUND = 0xff1e1a18;
  const home = { yaw: 0, pitch: 0.5, distance: 26, x: 0, y: 13, z: 0 };
  const view = { ...home };
  let current = 0, mode = "prediction";

  const turbo = (t) => {  // polynomial fit of the colour map "turbo" (Mikhailov, 2019)
    const x = Math.min(1, Math.max(0, t));
    const fit = (c) => 255 * Math.min(1, Math.max(0, c.reduceRight((sum, value) => sum * x + value, 0)));
    return [
      fit([0.1357, 4.6154, -42.6603, 132.1311, -152.9424, 59.2864]),
      fit([0.0914, 2.1942, 4.8430, -14.1850, 4.2773, 2.8296]),
      fit([0.1067, 12.6419, -60.5820, 110.3628, -89.9031, 27.3482]),
    ];
  };
  const agentColour = (agent) => [60 + ((agent * 97) % 196), 60 + ((agent * 57 + 80) % 196), 60 + ((agent * 151 + 40) % 196)];
  const distance = (points, i) => Math.hypot(points[3 * i], points[3 * i + 1], points[3 * i + 2]);
  const colourOf = {
    truth: (f, run, i) => (f.truth[i] === UNLABELLED ? GREY : data.colours[f.truth[i]]),
    prediction: (f, run, i) => data.colours[run.classes[i]],
    errors: (f, run, i) => (f.truth[i] === UNLABELLED ? GREY : f.truth[i] === run.classes[i] ? RIGHT : WRONG),
    agent: (f, run, i) => (f.agents[i] === NO_AGENT ? GREY : agentColour(f.agents[i])),
    distance: (f, run, i) => turbo(distance(f.points, i) / 60),
  };

  const element = (tag, properties, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const tip = element("div", { className: "tip" });
  const bar = element("div", { className: "bar" });
  const panes = element("div", { className: "panes" });
  const picture = element("img", { alt: "camera picture of the frame" });
  const buttons = [];
  const button = (label, group, chosen, act) => {
    const made = element("button", { type: "button", textContent: label, onclick: () => { act(); refresh(); } });
    made.dataset.group = group;
    buttons.push([made, chosen]);
    return made;
  };
  for (const name of Object.keys(colourOf))
    bar.append(button(name, "colour", () => mode === name, () => { mode = name; }));
  bar.append(element("span", { className: "gap" }));
  frames.forEach((frame, number) =>
    bar.append(button(`frame ${number + 1}`, "frame", () => current === number, () => { current = number; })));
  bar.append(element("span", { className: "gap" }), button("reset view", "view", () => false, () => Object.assign(view, home)));
  const canvases = data.runs.map((name, run) => {
    const canvas = element("canvas", { tabIndex: 0 });
    canvas.setAttribute("aria-label", `point cloud, ${name}`);
    panes.append(element("figure", {}, canvas, element("figcaption", { textContent: name })));
    return { canvas, run };
  });
  const caption = element("p", { className: "note" });
  root.append(bar, panes, caption, picture, tip);

  function draw({ canvas, run }) {
    const frame = frames[current], size = [canvas.clientWidth, Math.round(canvas.clientWidth * (data.runs.length > 1 ? 0.8 : 0.5))];
    if (!size[0]) return;
    [canvas.width, canvas.height] = size;
    const context = canvas.getContext("2d"), image = context.createImageData(...size);
    const pixels = new Uint32Array(image.data.buffer).fill(BACKGROUND);
    const depths = new Float32Array(pixels.length).fill(Infinity), owner = new Int32Array(pixels.length).fill(-1);
    const [sy, cy] = [Math.sin(view.yaw), Math.cos(view.yaw)], [sp, cp] = [Math.sin(view.pitch), Math.cos(view.pitch)];
    const focal = 0.9 * size[0], [width, height] = size, colour = colourOf[mode];
    for (let i = 0; i < frame.truth.length; i++) {
      const x = frame.points[3 * i] - view.x, y = frame.points[3 * i + 1] - view.y, z = frame.points[3 * i + 2] - view.z;
      const right = cy * x + sy * y, ahead = -sy * x + cy * y;
      const depth = cp * ahead - sp * z + view.distance;
      if (depth < 0.5) continue;
      const column = Math.round(width / 2 + (focal * right) / depth);
      const row = Math.round(height / 2 - (focal * (sp * ahead + cp * z)) / depth);
      const [r, g, b] = colour(frame, frame.runs[run], i), packed = (255 << 24) | (b << 16) | (g << 8) | r;
      const side = depth < 30 ? 2 : 1;
      for (let v = row; v <= row + side; v++)
        for (let u = column; u <= column + side; u++)
          if (u >= 0 && v >= 0 && u < width && v < height && depth < depths[v * width + u]) {
            depths[v * width + u] = depth;
            pixels[v * width + u] = packed;
            owner[v * width + u] = i;
          }
    }
    context.putImageData(image, 0, 0);
    canvas.owner = owner;
  }

  function refresh() {
    for (const [made, chosen] of buttons) made.setAttribute("aria-pressed", chosen());
    caption.textContent = `${frames[current].name}: ${frames[current].truth.length} points. Drag turns, shift and drag moves, the wheel zooms.`;
    picture.hidden = !frames[current].picture;
    if (frames[current].picture) picture.src = `data:image/jpeg;base64,${frames[current].picture}`;
    canvases.forEach(draw);
  }

  function pointAt(canvas, x, y) {
    for (let reach = 0; reach <= 4; reach++)
      for (let v = y - reach; v <= y + reach; v++)
        for (let u = x - reach; u <= x + reach; u++)
          if (u >= 0 && v >= 0 && u < canvas.width && v < canvas.height && canvas.owner[v * canvas.width + u] >= 0)
            return canvas.owner[v * canvas.width + u];
    return -1;
  }

  function describe(run, i) {
    const frame = frames[current], found = frame.runs[run], count = data.classes.length;
    const chances = data.classes.map((name, k) => [found.probabilities[i * count + k] / 255, name]);
    const best = chances.sort((a, b) => b[0] - a[0]).slice(0, 3).map(([share, name]) => `${name} ${Math.round(100 * share)} %`);
    const truth = frame.truth[i] === UNLABELLED ? "not scored" : data.classes[frame.truth[i]];
    return `truth: ${truth}\npredicted: ${data.classes[found.classes[i]]}\n${best.join(", ")}\n${distance(frame.points, i).toFixed(1)} m`;
  }

  let held = null;
  for (const { canvas, run } of canvases) {
    canvas.onpointerdown = (event) => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); };
    canvas.onpointerup = () => { held = null; };
    canvas.onpointerleave = () => { tip.hidden = true; };
    canvas.onpointermove = (event) => {
      if (held) {
        const [dx, dy] = [event.clientX - held[0], event.clientY - held[1]];
        held = [event.clientX, event.clientY];
        if (event.shiftKey) {
          const step = view.distance / canvas.clientWidth;
          view.x -= step * (Math.cos(view.yaw) * dx + Math.sin(view.yaw) * dy);
          view.y -= step * (Math.sin(view.yaw) * dx - Math.cos(view.yaw) * dy);
        } else {
          view.yaw -= dx * 0.006;
          view.pitch = Math.min(1.57, Math.max(0, view.pitch + dy * 0.006));
        }
        refresh();
        return;
      }
      const box = canvas.getBoundingClientRect();
      const point = pointAt(canvas, Math.round(event.clientX - box.left), Math.round(event.clientY - box.top));
      tip.hidden = point < 0;
      if (point >= 0) {
        tip.textContent = describe(run, point);
        tip.style.left = `${Math.max(0, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4))}px`;
        tip.style.top = `${event.clientY + 14}px`;
      }
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      view.distance = Math.min(200, Math.max(3, view.distance * Math.exp(event.deltaY * 0.001)));
      refresh();
    }, { passive: false });
  }
  tip.hidden = true;
  window.addEventListener("resize", refresh);
  refresh();
})();
