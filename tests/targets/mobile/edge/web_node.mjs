// Runs the bundle's own loading code on cases: node web_node.mjs <onnxruntime-web> <bundle> <case> …
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [library, bundle, ...cases] = process.argv.slice(2);
const ort = await import(pathToFileURL(library));
const { load } = await import(pathToFileURL(path.join(bundle, "web", "main.js")));
ort.env.wasm.numThreads = 1;
const description = JSON.parse(fs.readFileSync(path.join(bundle, "interface.json"), "utf8"));
const model = await load(ort, description, new Uint8Array(fs.readFileSync(path.join(bundle, "model.ort"))));
const answers = [];
for (const name of cases) {
  const outputs = await model.run(JSON.parse(fs.readFileSync(name, "utf8")).inputs);
  const plain = ([output, { dims, data }]) => [output, { dims, data: Array.from(data, Number) }];
  answers.push(Object.fromEntries(Object.entries(outputs).map(plain)));
}
console.log(JSON.stringify(answers));
