// Runs the bundle's own loading code on cases: node web_node.mjs <onnxruntime-web> <bundle> <case> …
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [library, bundle, ...cases] = process.argv.slice(2);
const ort = await import(pathToFileURL(library));
const { largestDifference, load } = await import(pathToFileURL(path.join(bundle, "web", "main.js")));
ort.env.wasm.numThreads = 1;
const description = JSON.parse(fs.readFileSync(path.join(bundle, "interface.json"), "utf8"));
const model = await load(ort, description, new Uint8Array(fs.readFileSync(path.join(bundle, "model.ort"))));
let largest = 0;
for (const name of cases) {
  const { inputs, outputs } = JSON.parse(fs.readFileSync(name, "utf8"));
  largest = Math.max(largest, largestDifference(outputs, await model.run(inputs)));
}
console.log(JSON.stringify({ largest, cases: cases.length }));
