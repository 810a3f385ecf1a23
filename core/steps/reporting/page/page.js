"use strict";
(() => {
  // Names come from models: they reach the page as text nodes only.
  const R = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main");
  const COLORS = ["#4e79a7", "#f28e2b", "#e15759", "#2a9d8f", "#9467bd", "#c9a227", "#a0673a", "#ff7b9c", "#59a14f", "#8c939b"];
  const kindColor = kind => COLORS[R.kinds.indexOf(kind) % COLORS.length];

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    for (const child of children.flat()) if (child != null) node.append(child);
    return node;
  };
  const section = (title, ...text) => {
    const box = make("section", {}, make("h2", {}, title), ...text.map(line => make("p", { class: "soft" }, line)));
    main.append(box);
    return box;
  };
  const percent = value => value == null ? "" : `${Number((100 * value).toPrecision(3))}%`;
  const fixed = value => (Math.round(100 * value) / 100 + 0).toFixed(2);
  const number = value => value == null ? "" : value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  const table = (columns, rows) => make("div", { class: "wide" }, make("table", {},
    make("thead", {}, make("tr", {}, columns.map(([name, kind]) => make("th", kind === "n" ? { class: "n" } : {}, name)))),
    make("tbody", {}, rows.map(cells => make("tr", {}, cells.map((cell, index) =>
      make("td", columns[index][1] ? { class: columns[index][1] } : {}, cell ?? "")))))));
  const bar = (value, text) => value == null ? "" : [
    make("span", { class: "bar", style: `width:${Math.max(0, Math.min(1, value)) * 5}em` }), text];

  // A chart is drawn for the width of its box, and again when that changes.
  const chart = (box, draw) => {
    const place = make("div", { class: "wide" });
    box.append(place);
    let width = 0;
    const redraw = () => {
      const now = Math.floor(place.clientWidth);
      if (now > 0 && now !== width) {
        width = now;
        place.replaceChildren(draw(width));
      }
    };
    redraw();
    new ResizeObserver(redraw).observe(place);
  };
  const plain = { fontSize: "12px", background: "transparent", overflow: "visible" };
  const plot = options => Plot.plot({ style: plain, ...options });
  const short = (text, length) => text.length <= length ? text : `…${text.slice(text.length - length + 1)}`;

  const layers = R.layers.map(row => Object.fromEntries(R.columns.map((name, index) => [name, row[index]])));
  for (const layer of layers) layer.kept = layer.rank == null || !layer.of ? null : layer.rank / layer.of;
  const experts = R.experts;

  facts();
  warnings();
  expertTable();
  overlap();
  acrossLayers();
  oneLayer();
  allTensors();
  recipe();

  function facts() {
    main.append(make("dl", { class: "facts" }, R.facts.map(([name, value]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
  }

  function warnings() {
    const box = section("Warnings");
    box.append(R.warnings.length
      ? make("ul", { class: "warnings" }, R.warnings.map(text => make("li", {}, text)))
      : make("p", {}, "None."));
  }

  function expertTable() {
    const box = section("Experts",
      "Share: of the squared norms of the weighted task vectors (expert minus base). Interference: error of the merged " +
      "weights on each expert's own input directions (the loss of WUDI), relative to the base, which is 1; 0 keeps all " +
      "that the expert changed, and above 1 the result is worse for it than the base. Cosines: with the merged change, " +
      "and with the sum of the other experts (below 0 they conflict). Alignment: part of its norm in the kept directions " +
      "(the subspace alignment ratio, over inputs). Interference, cosines and alignment are estimated with random probes.");
    const columns = [["expert", "name"], ["weight", "n"], ["arrived", "n"], ["share", ""], ["interference before", "n"],
      ["after", ""], ["cosine", "n"], ["with others", "n"], ["alignment", "n"]];
    box.append(table(columns, experts.map(one => [one.name, one.weight, percent(one.placed), bar(one.share, percent(one.share)),
      one.interference == null ? "" : "1", bar(one.interference, number(one.interference)), number(one.cosine),
      number(one.with_others), percent(one.alignment)])));
    if (!R.measured) box.append(make("p", {}, R.unmeasured));
  }

  function overlap() {
    if (!R.overlap) return;
    const box = section("Overlap of the experts",
      "Cosine of two task vectors over all measured tensors: 1 where two experts changed the same, 0 where they are " +
      "independent, below 0 where they work against each other.");
    const cells = R.overlap.flatMap((row, y) => row.map((value, x) => ({ x, y, value }))).filter(cell => cell.value != null);
    const many = experts.length > 12;
    chart(box, width => {
      const left = many ? 40 : Math.min(150, width / 3), size = Math.max(many ? 9 : 34, Math.min(64, (width - left - 10) / experts.length));
      const name = index => many ? String(index + 1) : `${index + 1} ${short(lastPart(experts[index].name), Math.floor(left / 8))}`;
      return plot({
        width: left + 10 + size * experts.length, height: 40 + size * experts.length, marginLeft: left, marginTop: 30, marginBottom: 4, marginRight: 4,
        x: { axis: "top", label: null, domain: d3.range(experts.length), tickFormat: index => String(index + 1), tickSize: 0 },
        y: { label: null, domain: d3.range(experts.length), tickFormat: name, tickSize: 0 },
        color: { type: "diverging", scheme: "RdBu", domain: [-1, 1] },
        marks: [
          Plot.cell(cells, { x: "x", y: "y", fill: "value", inset: 0.5,
            title: cell => `${experts[cell.y].name} and ${experts[cell.x].name}: ${fixed(cell.value)}`, tip: true }),
          ...(many ? [] : ["#111", "#fff"].map((ink, dark) => Plot.text(cells.filter(cell => (Math.abs(cell.value) > 0.5) === Boolean(dark)),
            { x: "x", y: "y", text: cell => fixed(cell.value), fill: ink }))),
        ],
      });
    });
  }

  function acrossLayers() {
    const deep = layers.filter(layer => layer.depth != null);
    if (!deep.length) return;
    const box = section("Over the layers");
    const kinds = R.kinds.filter(kind => deep.some(layer => layer.kind === kind));
    box.append(make("div", { class: "legend" }, kinds.map(kind => make("span", { style: `--color:${kindColor(kind)}` }, kind))));
    const charts = make("div", { class: "charts" });
    box.append(charts);
    const metrics = [["kept", "Rank: share of the directions that are kept", percent], ["interference", "Interference after the merge (base = 1)", number],
      ["relative", "Norm of the merged change, relative to the mean expert", number], ["energy", "Energy in the kept directions", percent]];
    for (const [name, title, format] of metrics) {
      const points = deep.filter(layer => layer[name] != null);
      if (!points.length) continue;
      const place = make("div", {}, make("h3", {}, title));
      charts.append(place);
      chart(place, width => plot({
        width, height: 230, marginLeft: 46, x: { label: "layer", ticks: d3.ticks(d3.min(points, p => p.depth), d3.max(points, p => p.depth), 8).filter(Number.isInteger), tickFormat: String, inset: 10 },
        y: { label: null, grid: true, tickFormat: format, zero: name !== "energy", nice: true },
        color: { domain: kinds, range: kinds.map(kindColor) },
        marks: [Plot.dot(points, { x: "depth", y: name, fill: "kind", r: 3.2, fillOpacity: 0.85, title: layer => `${layer.name}\n${format(layer[name])}`, tip: true })],
      }));
    }
    for (const [name, title, scheme, format] of [["kept", "Rank (share of the directions)", "Viridis", percent], ["interference", "Interference after the merge", "YlOrRd", number]]) {
      const cells = d3.flatRollup(deep.filter(layer => layer[name] != null), group => d3.mean(group, layer => layer[name]), layer => layer.row, layer => layer.depth)
        .map(([row, depth, value]) => ({ row, depth, value }));
      if (!cells.length) continue;
      const rows = R.rows.filter(row => cells.some(cell => cell.row === row)), depths = [...new Set(cells.map(cell => cell.depth))].sort((a, b) => a - b);
      box.append(make("h3", {}, title));
      chart(box, width => {
        const left = Math.min(190, Math.max(90, width / 3)), size = Math.max(11, Math.min(44, (width - left - 16) / depths.length));
        const every = Math.ceil(26 / size);
        return plot({
          width: left + 16 + size * depths.length, height: 44 + 22 * rows.length, marginLeft: left, marginRight: 16, marginTop: 6, marginBottom: 34,
          x: { label: "layer", domain: depths, ticks: depths.filter((_, index) => index % every === 0), tickSize: 0, tickFormat: String },
          y: { label: null, domain: rows, tickSize: 0, tickFormat: row => short(row, Math.floor(left / 7)) },
          color: { type: "linear", scheme, legend: false, zero: name === "interference" },
          marks: [Plot.cell(cells, { x: "depth", y: "row", fill: "value", inset: 0.5, title: cell => `${cell.row}, layer ${cell.depth}\n${format(cell.value)}`, tip: true })],
        });
      });
      const values = cells.map(cell => cell.value);
      const low = name === "interference" ? Math.min(0, ...values) : d3.min(values), high = d3.max(values);
      if (high > low) box.append(Plot.legend({ color: { type: "linear", scheme, domain: [low, high] }, label: title, width: 240, tickFormat: format, ticks: 3, style: { background: "transparent", color: "inherit" } }));
    }
  }

  function oneLayer() {
    if (!layers.length) return;
    const box = section("One layer");
    const select = make("select", { id: "layer", "aria-label": "layer" }, layers.map((layer, index) => make("option", { value: index }, layer.name)));
    box.append(make("label", {}, select));
    const body = make("div");
    box.append(body);
    const show = () => {
      body.replaceChildren();
      const layer = layers[Number(select.value)];
      const facts = [["kind", layer.kind], ["method", layer.method], ["shape", layer.shape],
        ["rank", layer.rank == null ? null : `${layer.rank}${layer.of ? ` of ${layer.of}` : ""}`], ["energy kept", percent(layer.energy)],
        ["norm of the merged change", number(layer.delta)], ["interference", number(layer.interference)],
        ["changed by SVC", layer.svc == null ? null : percent(layer.svc)], ["seconds", number(layer.seconds)], ["spectrum", layer.origin]];
      body.append(make("dl", { class: "facts" }, facts.filter(([, value]) => value).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
      if (layer.why) body.append(make("p", {}, make("span", { class: "soft" }, "rank by "), layer.why));
      for (const note of layer.notes || []) body.append(make("ul", { class: "warnings" }, make("li", {}, note)));
      spectra(body, layer);
      if (layer.experts && layer.experts.length) {
        body.append(make("h3", {}, "Experts in this layer"));
        body.append(table([["expert", "name"], ["share", ""], ["interference before", "n"], ["after", ""], ["cosine", "n"], ["with others", "n"], ["alignment", "n"]],
          layer.experts.map(([index, share, interference, cosine, others, aligned]) => [experts[index].name, bar(share, percent(share)),
            interference == null ? "" : "1", bar(interference, number(interference)), number(cosine), number(others), percent(aligned)])));
      }
    };
    select.addEventListener("change", show);
    const first = layers.findIndex(layer => layer.curves && layer.curves.length);
    select.value = String(Math.max(0, first));
    show();
  }

  function spectra(body, layer) {
    const curves = (layer.curves || []).filter(curve => curve[3].length);
    if (!curves.length) {
      if (layer.rank != null) body.append(make("p", { class: "soft" }, R.missing || "The spectrum of this layer is not known."));
      return;
    }
    const points = curves.flatMap(([name, , , values, energies, grid]) => R.grids[grid].map((index, at) => ({ name, index, value: 10 ** (values[at] / 100), energy: energies[at] / 1000 })));
    const ranks = curves.map(([name, rank]) => ({ name, rank })).filter(one => one.rank > 0);
    const floors = curves.filter(curve => curve[6] != null).map(curve => 10 ** (curve[6] / 100));
    const color = { domain: curves.map(curve => curve[0]), range: COLORS };
    const what = curves[0][7] ? "singular value" : "eigenvalue";
    if (curves.length > 1) body.append(make("div", { class: "legend" }, curves.map(([name], index) => make("span", { style: `--color:${COLORS[index % COLORS.length]}` }, name))));
    const charts = make("div", { class: "charts" });
    body.append(charts);
    const x = { type: "sqrt", label: "direction", domain: [1, d3.max(points, point => point.index)], tickFormat: "~s", ticks: 6 };
    const one = make("div", {}, make("h3", {}, `Spectrum: ${what} / largest`), make("p", { class: "soft" },
      "Vertical line: kept rank." + (floors.length ? " Dashed: level of rounding; directions below it are noise." : "")));
    const two = make("div", {}, make("h3", {}, "Energy: share of the sum up to a direction"), make("p", { class: "soft" }, "Vertical line: kept rank."));
    charts.append(one, two);
    const line = (name, extra) => width => plot({
      width, height: 270, marginLeft: 52, x, color, ...extra,
      marks: [
        Plot.ruleX(ranks, { x: "rank", stroke: "name", strokeWidth: 1.5, strokeOpacity: 0.8 }),
        name === "value" ? Plot.ruleY(floors, { strokeDasharray: "5,4", strokeOpacity: 0.7 }) : null,
        Plot.line(points, { x: "index", y: name, stroke: "name", strokeWidth: 1.8 }),
        Plot.dot(points, Plot.pointerX({ x: "index", y: name, stroke: "name", r: 3 })),
        Plot.tip(points, Plot.pointerX({ x: "index", y: name, title: point => `direction ${point.index}\n${what} ${number(point.value)}\nenergy ${(100 * point.energy).toFixed(1)}%` })),
      ],
    });
    chart(one, line("value", { y: { type: "log", label: null, grid: true, tickFormat: "~e", ticks: 6 } }));
    chart(two, line("energy", { y: { label: null, grid: true, domain: [0, 1], tickFormat: percent } }));
  }

  function allTensors() {
    if (!layers.length) return;
    const box = section("All merged tensors");
    const filter = make("input", { type: "search", placeholder: "part of a name", "aria-label": "part of a name" });
    const details = make("details", {}, make("summary", {}, `${layers.length} tensors`), filter);
    const timed = layers.some(layer => layer.seconds != null);
    const columns = [["tensor", "name"], ["kind", ""], ["method", ""], ["rank", "n"], ["of", "n"], ["energy", "n"], ["interference", "n"], ["norm", "n"], ...(timed ? [["seconds", "n"], ["spectrum", ""]] : [])];
    let shown = make("div");
    const fill = () => {
      const part = filter.value.toLowerCase();
      const found = layers.filter(layer => layer.name.toLowerCase().includes(part));
      const next = make("div", {}, table(columns, found.slice(0, 500).map(layer => [layer.name, layer.kind, layer.method, number(layer.rank), number(layer.of),
        percent(layer.energy), number(layer.interference), number(layer.delta), ...(timed ? [number(layer.seconds), layer.origin] : [])])),
        found.length > 500 ? make("p", { class: "soft" }, `500 of ${found.length}`) : null);
      shown.replaceWith(next);
      shown = next;
    };
    details.append(shown);
    details.addEventListener("toggle", fill, { once: true });
    filter.addEventListener("input", fill);
    box.append(details);
  }

  function recipe() {
    const box = section("Recipe");
    box.append(make("details", {}, make("summary", {}, "as it was merged"), make("pre", {}, R.recipe)));
  }

  function lastPart(name) {
    return name.replace(/\/+$/, "").split("/").pop();
  }
})();
