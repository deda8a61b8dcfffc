// From a panel's targets to data frames, as Grafana's Prometheus data source makes them of the same answers.
import { FieldType, createTheme, getDisplayProcessor, toDataFrame } from "@grafana/data";

export const theme = createTheme({ colors: { mode: "dark" } });

export function substitute(text, variables) {
  return Object.entries(variables).reduce((done, [name, value]) => done.replaceAll(`$${name}`, value), text);
}

async function ask(server, what, words) {
  const answer = await fetch(`${server}/api/v1/${what}?${new URLSearchParams(words)}`);
  const body = await answer.json();
  if (body.status !== "success") throw new Error(body.error);
  return body.data.result;
}

function legend(target, labels) {
  const format = target.legendFormat;
  if (!format || format === "__auto") {
    const values = Object.entries(labels).filter(([name]) => name !== "__name__");
    return values.map(([name, value]) => `${name}="${value}"`).join(", ") || "Value";
  }
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? "");
}

function overridden(panel, name, config) {
  for (const { matcher, properties } of panel.fieldConfig.overrides ?? []) {
    const pattern = String(matcher.options ?? "");
    const regexp = pattern.match(/^\/(.*)\/$/);
    const fits =
      matcher.id === "byName" ? pattern === name : matcher.id === "byRegexp" && new RegExp(regexp ? regexp[1] : pattern).test(name);
    if (!fits) continue;
    for (const { id, value } of properties) {
      if (id.startsWith("custom.")) config.custom = { ...config.custom, [id.slice(7)]: value };
      else config[id] = value;
    }
  }
  return config;
}

export function configured(panel, frame) {
  for (const field of frame.fields) {
    const name = field.config.displayName ?? field.name;
    const defaults = structuredClone(panel.fieldConfig.defaults);
    if (field.type !== FieldType.number) {
      delete defaults.unit;
      delete defaults.noValue;
    }
    field.config = overridden(panel, name, { ...defaults, ...field.config });
    field.display = getDisplayProcessor({ field, theme });
    field.state = { ...field.state, displayName: field.config.displayName ?? field.name };
  }
  return frame;
}

const number = (text) => (text === "NaN" ? null : Number(text));

async function range(server, expr, target, { from, to, step }) {
  const found = await ask(server, "query_range", { query: expr, start: from, end: to, step });
  return found.map(({ metric, values }) =>
    toDataFrame({
      refId: target.refId,
      fields: [
        { name: "Time", type: FieldType.time, values: values.map(([time]) => time * 1000), config: {} },
        {
          name: "Value",
          type: FieldType.number,
          labels: metric,
          values: values.map(([, value]) => number(value)),
          config: { displayName: legend(target, metric) },
        },
      ],
    }),
  );
}

async function instant(server, expr, target, { to }) {
  const found = await ask(server, "query", { query: expr, time: to });
  return found.map(({ metric, value }) => ({ metric, value: number(value[1]), name: legend(target, metric), target }));
}

// Rows of several instant queries, joined where all their common labels agree; the organize transformation's names.
export function table(panel, results) {
  const rows = new Map();
  for (const { metric, value, target } of results.flat()) {
    const labels = Object.fromEntries(Object.entries(metric).filter(([name]) => name !== "__name__"));
    const key = JSON.stringify(Object.entries(labels).sort());
    const row = rows.get(key) ?? { ...labels };
    row[results.length > 1 ? `Value #${target.refId}` : "Value"] = value;
    rows.set(key, row);
  }
  const merged = joined([...rows.values()]);
  const organize = (panel.transformations ?? []).find(({ id }) => id === "organize")?.options ?? {};
  const names = [...new Set(merged.flatMap((row) => Object.keys(row)))];
  const shown = names
    .filter((name) => !organize.excludeByName?.[name])
    .sort((one, other) => (organize.indexByName?.[one] ?? 99) - (organize.indexByName?.[other] ?? 99));
  return toDataFrame({
    fields: shown.map((name) => ({
      name: organize.renameByName?.[name] ?? name,
      type: name.startsWith("Value") ? FieldType.number : FieldType.string,
      values: merged.map((row) => row[name] ?? null),
      config: {},
    })),
  });
}

function joined(rows) {
  const done = [];
  for (const row of rows) {
    const labels = (one) => Object.entries(one).filter(([name]) => !name.startsWith("Value"));
    const mate = done.find((other) => labels(row).every(([name, value]) => other[name] === undefined || other[name] === value)
      && labels(other).some(([name, value]) => row[name] === value)
      && Object.keys(row).filter((name) => name.startsWith("Value")).every((name) => other[name] === undefined));
    if (mate) Object.assign(mate, row);
    else done.push({ ...row });
  }
  return done;
}

export async function framesOf(panel, server, variables, times) {
  const results = await Promise.all(
    (panel.targets ?? []).map((target) => {
      const expr = substitute(target.expr, variables);
      return target.range ? range(server, expr, target, times) : instant(server, expr, target, times);
    }),
  );
  if (panel.type === "timeseries") return results.flat().map((frame) => configured(panel, frame));
  if (panel.type === "table") return [configured(panel, table(panel, results))];
  return results.flat().map(({ name, value }) =>
    configured(panel, toDataFrame({ fields: [{ name, type: FieldType.number, values: [value], config: { displayName: name } }] })),
  );
}
