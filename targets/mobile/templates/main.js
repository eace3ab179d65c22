// Runs model.ort with onnxruntime-web, in a browser or in Node: the caller brings the library.
//
//   import * as ort from "onnxruntime-web";
//   const model = await load(ort, description, bytes); // interface.json as an object, model.ort as bytes
//   const outputs = await model.run({ input_ids: { dims: [1, 3], data: [101, 7592, 102] }, … });
//
// Token ids come from tokenizer.json, for example by @huggingface/tokenizers.

const ARRAYS = {
  int64: BigInt64Array,
  int32: Int32Array,
  uint8: Uint8Array,
  int8: Int8Array,
  float32: Float32Array,
  float64: Float64Array,
};

export async function load(ort, description, bytes) {
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return {
    // Inputs and outputs: name → { dims, data }. Inputs are filled up to the sizes that the model is made for,
    // with zeros, and outputs lose what was filled up. Inputs that are larger than the model's are refused.
    async run(inputs) {
      const sizes = {};
      const feeds = {};
      for (const port of description.inputs) {
        const given = inputs[port.name];
        if (!given) throw new Error(`input ${port.name} is missing`);
        checkSizes(port, given, sizes);
        const dims = port.fixed ?? given.dims;
        const numbers = resized(given.data, given.dims, dims, new ARRAYS[port.type](product(dims)));
        feeds[port.name] = new ort.Tensor(port.type, numbers, dims);
      }
      const results = await session.run(feeds);
      const outputs = {};
      for (const port of description.outputs) {
        const { dims, data } = results[port.name];
        const wanted = dims.map((size, axis) => sizes[port.sizes[axis]] ?? size);
        const numbers = resized(data, dims, wanted, new data.constructor(product(wanted)));
        outputs[port.name] = { dims: wanted, data: numbers };
      }
      return outputs;
    },
  };
}

// The largest difference between two sets of outputs, as a share of the largest number of the first.
export function largestDifference(expected, seen) {
  let error = 0;
  let peak = 1e-30;
  for (const [name, { dims, data }] of Object.entries(expected)) {
    const other = seen[name];
    if (!other || String(other.dims) !== String(dims)) throw new Error(`output ${name} has other sizes`);
    data.forEach((number, index) => {
      const difference = Math.abs(Number(number) - Number(other.data[index]));
      if (!(difference <= error)) error = difference;
      peak = Math.max(peak, Math.abs(Number(number)));
    });
  }
  return error / peak;
}

// Refuses an input that the model cannot take as it is, and notes in `sizes` what will be filled up.
function checkSizes(port, { dims, data }, sizes) {
  const fail = (why) => {
    throw new Error(`input ${port.name} is [${dims}] with ${data.length} numbers: ${why}`);
  };
  if (dims.length !== port.sizes.length) fail(`the model has ${port.sizes.length} axes`);
  if (data.length !== product(dims)) fail(`such a tensor has ${product(dims)}`);
  if (!port.fixed) return;
  if (dims.some((size, axis) => size > port.fixed[axis])) fail(`the model is made for [${port.fixed}]`);
  port.sizes.forEach((size, axis) => {
    if (typeof size === "string") sizes[size] = dims[axis];
  });
}

function product(sizes) {
  return sizes.reduce((all, size) => all * size, 1);
}

// Copies the block that both sizes have in common into `target`, whose other entries stay zero.
function resized(source, from, to, target) {
  const big = target instanceof BigInt64Array;
  const index = new Array(to.length).fill(0);
  for (let done = 0; done < target.length; done++) {
    if (index.every((place, axis) => place < from[axis])) {
      const place = index.reduce((sum, here, axis) => sum * from[axis] + here, 0);
      target[done] = big ? BigInt(source[place]) : source[place];
    }
    for (let axis = to.length - 1; axis >= 0 && ++index[axis] === to[axis]; axis--) index[axis] = 0;
  }
  return target;
}
