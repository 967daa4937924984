// MQTT.js, told what to do by lines of JSON on stdin; what it answers and hears are lines of JSON on stdout.
//
// {"id", "client", "call": "connect" | "publish" | "subscribe" | "unsubscribe" | "end", ...}  →  {"id", "answer" | "error"}
// A message, or an event of a client: {"client", "heard" | "event", ...}. Payloads are base64, buffers as
// Node writes them.
import { createInterface } from "node:readline";
import mqtt from "mqtt";

const clients = {};
const buffers = (_, value) => (value?.type === "Buffer" ? Buffer.from(value.data) : value);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

const calls = {
  connect: async ({ client, url, options }) => {
    const made = mqtt.connect(url, { clientId: client, reconnectPeriod: 50, ...options });
    clients[client] = made;
    made.on("message", (topic, payload, { qos, retain, dup, properties }) =>
      say({ client, heard: topic, payload: payload.toString("base64"), qos, retain, dup, properties }),
    );
    made.on("disconnect", ({ reasonCode }) => say({ client, event: "disconnect", reasonCode }));
    made.on("error", ({ message, code }) => say({ client, event: "error", message, code }));
    return new Promise((done) => {
      made.once("connect", ({ sessionPresent, properties }) => done({ sessionPresent, properties }));
      made.once("error", ({ code }) => done({ code }));
    });
  },
  publish: ({ client, topic, payload, options }) =>
    clients[client].publishAsync(topic, Buffer.from(payload, "base64"), options).then(() => null),
  subscribe: ({ client, topics, options }) => clients[client].subscribeAsync(topics, options),
  unsubscribe: ({ client, topics }) => clients[client].unsubscribeAsync(topics).then(() => null),
  end: ({ client, force }) => clients[client].endAsync(force),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, call, ...rest } = JSON.parse(line, buffers);
  calls[call](rest).then(
    (answer) => say({ id, answer: answer ?? null }),
    (error) => say({ id, error: error.message, code: error.code }),
  );
}
process.exit(0);
