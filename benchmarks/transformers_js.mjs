// What transformers.js makes of an artifact, in Node.js and in a browser alike.
export async function answers(library, given) {
  const { env, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer } = library;
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: given.folder });
  // Without a dtype, a file name such as model_quantized.onnx is looked for in Node.js and browsers differently.
  const options = { subfolder: given.subfolder, dtype: "fp32" };
  // A browser cannot look beside a file for what several files share.
  if (given.shared) options.session_options = { externalData: given.shared.map((path) => ({ path, data: path })) };
  const tokenizer = await AutoTokenizer.from_pretrained(given.name);
  const kinds = { encodes: AutoModelForSeq2SeqLM, continues: AutoModelForCausalLM, answers: AutoModel };
  const model = await kinds[given.kind].from_pretrained(given.name, options);
  const numbers = (tensor) => Array.from(tensor.data, Number);
  const found = [];
  for (const text of given.texts) {
    const read = await tokenizer(text);
    const ids = numbers(read.input_ids);
    if (given.kind === "answers") {
      const outputs = Object.entries(await model(read));
      found.push({ ids, outputs: Object.fromEntries(outputs.map(([name, value]) => [name, numbers(value)])) });
      continue;
    }
    const written = await model.generate({ ...read, max_new_tokens: given.tokens, num_beams: 1, do_sample: false });
    found.push({ ids, written: numbers(written).slice(given.kind === "continues" ? ids.length : 0) });
  }
  return found;
}
