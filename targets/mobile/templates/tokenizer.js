// Turns a text into token ids, as the WordPiece tokenizer of BERT does, from the tokenizer.json of the model.
//
//   const encode = wordPiece(description); // tokenizer.json as an object; null where it is of another kind
//   const ids = encode("A text.");         // with what stands before and after it, such as [CLS] and [SEP]

const PUNCTUATION = /[\p{P}$+<=>^`|~]/u;
const CHINESE = /[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u{20000}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/u;

export function wordPiece(description) {
  const { model, normalizer, pre_tokenizer: split, post_processor: frame } = description;
  const known = model?.type === "WordPiece" && split?.type === "BertPreTokenizer";
  if (!known || (normalizer && normalizer.type !== "BertNormalizer")) return null;
  const around = framing(frame);
  if (!around) return null;
  return (text) => {
    const ids = words(normalised(text, normalizer ?? {})).flatMap((word) => pieces(word, model));
    return around(ids);
  };
}

function normalised(text, { clean_text, handle_chinese_chars, strip_accents, lowercase }) {
  let found = text;
  if (clean_text) found = found.replace(/[\p{Zs}\t\n\r]/gu, " ").replace(/[\p{C}\ufffd]/gu, "");
  if (handle_chinese_chars) found = found.replace(new RegExp(CHINESE, "gu"), " $& ");
  if (strip_accents ?? lowercase) found = found.normalize("NFD").replace(/\p{Mn}/gu, "");
  return lowercase ? found.toLowerCase() : found;
}

function words(text) {
  const found = [];
  let word = "";
  for (const character of text) {
    const alone = PUNCTUATION.test(character);
    if (alone || /\s/u.test(character)) {
      if (word) found.push(word);
      if (alone) found.push(character);
      word = "";
    } else {
      word += character;
    }
  }
  return word ? [...found, word] : found;
}

function pieces(word, { vocab, unk_token, continuing_subword_prefix, max_input_chars_per_word }) {
  const characters = [...word];
  if (characters.length > max_input_chars_per_word) return [vocab[unk_token]];
  const found = [];
  for (let start = 0; start < characters.length; ) {
    let end = characters.length;
    const piece = () => (start ? continuing_subword_prefix : "") + characters.slice(start, end).join("");
    while (end > start && !Object.hasOwn(vocab, piece())) end -= 1;
    if (end === start) return [vocab[unk_token]];
    found.push(vocab[piece()]);
    start = end;
  }
  return found;
}

function framing(frame) {
  if (!frame) return (ids) => ids;
  if (frame.type === "BertProcessing") return (ids) => [frame.cls[1], ...ids, frame.sep[1]];
  if (frame.type !== "TemplateProcessing") return null;
  return (ids) =>
    frame.single.flatMap((part) => (part.SpecialToken ? frame.special_tokens[part.SpecialToken.id].ids : ids));
}

// The inputs of a model of texts: ids, a mask of ones, and zeros for what tells two texts apart.
export function inputsOf(description, ids) {
  const inputs = {};
  for (const { name } of description.inputs) {
    const data = /mask/.test(name) ? ids.map(() => 1) : /type|segment/.test(name) ? ids.map(() => 0) : ids;
    inputs[name] = { dims: [1, ids.length], data };
  }
  return inputs;
}
