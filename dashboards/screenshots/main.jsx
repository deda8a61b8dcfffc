// A dashboard's JSON, drawn with Grafana's own React components from a Prometheus. It shows what Grafana's panels make of
// our queries, units, thresholds and texts; that a Grafana has loaded the file it does not show.
import { dateTime, getDisplayProcessor } from "@grafana/data";
import { BarGauge, BigValue, PanelChrome, Table, ThemeContext, TimeSeries } from "@grafana/ui";
import { Component, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import fleet from "../fleet.json";
import node from "../node.json";
import { framesOf, theme } from "./data.js";

const CELL = 30;
const GAP = 8;
const WIDTH = 1600;
const words = Object.fromEntries(new URLSearchParams(location.search));
const dashboard = { fleet, node }[words.dashboard];
const times = { from: Number(words.from), to: Number(words.to), step: Number(words.step) };
const variables = {
  __rate_interval: words.interval,
  __interval: words.interval,
  __range: `${Math.round(times.to - times.from)}s`,
  cluster: ".*",
  node: words.node,
};

class Guard extends Component {
  state = {};
  static getDerivedStateFromError = (error) => ({ error });
  render() {
    return this.state.error ? <pre style={{ color: "red" }}>{String(this.state.error)}</pre> : this.props.children;
  }
}

const LINE = {
  drawStyle: "line",
  lineWidth: 1,
  fillOpacity: 10,
  pointSize: 5,
  showPoints: "never",
  spanNulls: true,
  axisPlacement: "auto",
  scaleDistribution: { type: "linear" },
  stacking: { mode: "none" },
};

function Lines({ panel, frames, width, height }) {
  for (const frame of frames) {
    for (const field of frame.fields) field.config.custom = { ...LINE, ...field.config.custom };
  }
  frames.forEach((frame, index) => {
    frame.fields[1].config.color = { mode: "palette-classic", ...frame.fields[1].config.color };
    frame.fields[1].state = { ...frame.fields[1].state, seriesIndex: index };
    frame.fields[1].display = getDisplayProcessor({ field: frame.fields[1], theme });
  });
  const raw = { from: dateTime(times.from * 1000), to: dateTime(times.to * 1000) };
  return (
    <TimeSeries
      frames={frames}
      width={width}
      height={height}
      timeRange={{ ...raw, raw }}
      timeZone="utc"
      legend={{ displayMode: "list", placement: "bottom", showLegend: true, calcs: [], ...panel.options.legend }}
      options={panel.options}
    />
  );
}

function Numbers({ panel, frames, width, height }) {
  const each = width / frames.length;
  return (
    <div style={{ display: "flex" }}>
      {frames.map((frame, index) => (
        <BigValue
          key={index}
          width={each}
          height={height}
          theme={theme}
          value={{ ...frame.fields[0].display(frame.fields[0].values[0]), title: frames.length > 1 ? frame.fields[0].config.displayName : undefined }}
          colorMode={panel.options.colorMode ?? "value"}
          graphMode="none"
          textMode={panel.options.textMode}
        />
      ))}
    </div>
  );
}

function Bars({ frames, width, height }) {
  const each = Math.min(60, height / frames.length);
  return frames.map((frame, index) => (
    <BarGauge
      key={index}
      width={width}
      height={each - 4}
      theme={theme}
      field={frame.fields[0].config}
      display={frame.fields[0].display}
      value={{ ...frame.fields[0].display(frame.fields[0].values[0]), title: frame.fields[0].config.displayName }}
      orientation="horizontal"
      displayMode="gradient"
    />
  ));
}

function Content({ panel, frames, width, height }) {
  const rows = frames.reduce((most, frame) => Math.max(most, frame.length), 0);
  if (!rows) {
    const text = panel.fieldConfig.defaults.noValue ?? "No data";
    return <div style={{ color: "#9fa7b3", textAlign: "center", paddingTop: height / 2 - 12 }}>{text}</div>;
  }
  if (panel.type === "timeseries") return <Lines {...{ panel, frames, width, height }} />;
  if (panel.type === "stat") return <Numbers {...{ panel, frames, width, height }} />;
  if (panel.type === "bargauge") return <Bars {...{ frames, width, height }} />;
  return <Table data={frames[0]} width={width} height={height} />;
}

function Panel({ panel, onDone }) {
  const [state, setState] = useState();
  useEffect(() => {
    framesOf(panel, words.prometheus, variables, times)
      .then((frames) => setState({ frames }), (error) => setState({ error }))
      .finally(onDone);
  }, []);
  const { x, y, w, h } = panel.gridPos;
  const cell = (WIDTH + GAP) / 24;
  const place = { position: "absolute", left: x * cell, top: y * (CELL + GAP), width: w * cell - GAP, height: h * (CELL + GAP) - GAP };
  if (panel.type === "row") {
    return <div style={{ ...place, color: "#ccccdc", fontSize: 16, paddingTop: 8 }}>{panel.title}</div>;
  }
  return (
    <div style={place}>
      <PanelChrome title={panel.title} description={panel.description} width={place.width} height={place.height}>
        {(width, height) => (
          <Guard>
            {state?.error ? <pre style={{ color: "red" }}>{String(state.error)}</pre> : null}
            {state?.frames ? <Content panel={panel} frames={state.frames} width={width} height={height} /> : null}
          </Guard>
        )}
      </PanelChrome>
    </div>
  );
}

function Dashboard() {
  const [done, setDone] = useState(0);
  const height = Math.max(...dashboard.panels.map(({ gridPos: { y, h } }) => (y + h) * (CELL + GAP)));
  const queried = dashboard.panels.length;
  return (
    <ThemeContext.Provider value={theme}>
      <div id={done >= queried ? "drawn" : "drawing"} style={{ position: "relative", width: WIDTH, height, margin: 16 }}>
        {dashboard.panels.map((panel) => (
          <Panel key={panel.id} panel={panel} onDone={() => setDone((count) => count + 1)} />
        ))}
      </div>
    </ThemeContext.Provider>
  );
}

createRoot(document.getElementById("root")).render(<Dashboard />);
