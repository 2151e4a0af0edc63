"use strict";

const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches; // there a finger on a chart scrolls the page

const theme = () => {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), faint: read("--faint"), line: read("--line"), raised: read("--raised") };
};

function layout(view, state) {
  const colors = theme();
  const axis = (title, log, percent) => ({
    title: { text: title, font: { size: 13 } }, type: log ? "log" : "linear", gridcolor: colors.line,
    zerolinecolor: colors.line, linecolor: colors.faint, automargin: true,
    tickformat: percent ? ".3~%" : log ? ".4~g" : undefined, hoverformat: percent ? ".2%" : ".4~g",
    exponentformat: "power", minexponent: 4, tickfont: { size: 11 },
  });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colors.ink, size: 12 },
    margin: { l: 60, r: 16, t: 30, b: 44 }, hovermode: "closest", dragmode: touch ? false : "zoom",
    hoverlabel: { bgcolor: colors.raised, bordercolor: colors.line, font: { color: colors.ink } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colors.faint, activecolor: colors.ink },
    uirevision: `${view.metric} ${view.axis} ${state.logX} ${state.logY}`, showlegend: false,
    xaxis: { ...axis(view.x, state.logX, false), ...(state.logX ? {} : { rangemode: "tozero" }) },
    yaxis: axis(view.y, state.logY, view.percent),
  };
}

const config = {
  responsive: true, displaylogo: false,
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};

function checkbox(text, checked, changed) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = checked;
  box.addEventListener("change", () => changed(box.checked));
  label.append(box, text);
  return { label, box };
}

function chooser(text, values, changed) {
  const label = document.createElement("label");
  const select = document.createElement("select");
  select.append(...values.map((value) => new Option(value, value)));
  select.addEventListener("change", () => changed(select.value));
  label.append(text, select);
  return label;
}

const DASHES = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2" };

function swatch(line) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const attributes = { x1: 0, x2: 26, y1: 5, y2: 5, stroke: line.color, "stroke-width": 2.5,
    "stroke-dasharray": DASHES[line.dash] };
  Object.entries(attributes).forEach(([name, value]) => stroke.setAttribute(name, value));
  svg.append(stroke);
  return svg;
}

// One button for each group of traces: a click hides it or shows it again, a double click shows it alone.
function legend(place, chart, hidden, draw) {
  const lines = new Map();
  chart.views.forEach((view) => view.traces.forEach((trace) => {
    if (trace.line && !lines.has(trace.legendgroup)) lines.set(trace.legendgroup, trace.line);
  }));
  const buttons = [...lines].map(([name, line]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(swatch(line), name);
    button.addEventListener("click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      update();
    });
    button.addEventListener("dblclick", () => {
      const others = [...lines.keys()].filter((other) => other !== name);
      const alone = !hidden.has(name) && others.every((other) => hidden.has(other));
      hidden.clear();
      if (!alone) others.forEach((other) => hidden.add(other));
      update();
    });
    return [name, button];
  });
  const update = () => {
    buttons.forEach(([name, button]) => button.setAttribute("aria-pressed", String(!hidden.has(name))));
    draw();
  };
  buttons.forEach(([name, button]) => button.setAttribute("aria-pressed", String(!hidden.has(name))));
  place.append(...buttons.map(([, button]) => button));
}

function build(chart) {
  const place = document.getElementById(chart.id);
  const controls = document.getElementById(`${chart.id}-controls`);
  const distinct = (key) => [...new Set(chart.views.map((view) => view[key]).filter(Boolean))];
  const find = (metric, axis) =>
    chart.views.find((view) => view.metric === metric && view.axis === axis)
    || chart.views.find((view) => view.metric === metric) || chart.views[0];
  const hidden = new Set();
  const state = { logX: Boolean(chart.views[0].log_x), logY: Boolean(chart.views[0].log_y) };
  let view = chart.views[0];
  const draw = () => {
    const traces = view.traces.map((trace) => ({ ...trace, visible: !hidden.has(trace.legendgroup) }));
    logY.label.hidden = Boolean(view.percent);
    Plotly.react(place, traces, layout(view, state), config);
  };
  const logY = checkbox("log y", state.logY, (on) => { state.logY = on; draw(); });
  const logX = checkbox("log x", state.logX, (on) => { state.logX = on; draw(); });
  const choose = (metric, axis) => {
    const before = view.metric;
    view = find(metric, axis);
    if (view.metric !== before) {
      state.logY = Boolean(view.log_y);
      logY.box.checked = state.logY;
    }
    draw();
  };
  if (distinct("metric").length > 1) {
    controls.append(chooser("show", distinct("metric"), (metric) => choose(metric, view.axis)));
  }
  if (distinct("axis").length > 1) {
    controls.append(chooser("against", distinct("axis"), (axis) => choose(view.metric, axis)));
  }
  controls.append(logY.label, logX.label);
  legend(document.getElementById(`${chart.id}-legend`), chart, hidden, draw);
  dark.addEventListener("change", draw);
  draw();
}

charts.forEach(build);
document.documentElement.dataset.ready = String(charts.length);
