"""Front door: modules and checkpoints become models that answer as PyTorch does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import graphcompress  # noqa: E402
from graphcompress.capturing.checkpoint import export  # noqa: E402
from graphcompress.capturing.comparison import other_sizes  # noqa: E402
from graphcompress.capturing.loading import is_checkpoint  # noqa: E402
from graphcompress.capturing.source import is_hub_name, open_model  # noqa: E402
from graphcompress.capturing.traceable import Traceable, default_axes  # noqa: E402
from graphcompress.cli import app  # noqa: E402
from graphcompress.errors import (  # noqa: E402
    ContractError,
    InvalidModelError,
    MissingExtraError,
    UnsupportedModelError,
    UsageError,
)
from graphcompress.files.runtime import session_of  # noqa: E402
from graphcompress.graph.runner import Runner  # noqa: E402
from graphcompress.plugin.extras import needs_torch  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT for three classes with a tokenizer of words."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=32, num_labels=3, **SMALL)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    import tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(20))]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def bert_file(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(bert_folder, tmp_path_factory.mktemp("onnx") / "model.onnx")


def test_a_checkpoint_keeps_names_tokenizer_and_answers(bert_folder: Path, bert_file: Path) -> None:
    model = graphcompress.load(str(bert_file))
    assert [value.name for value in model.graph.inputs] == ["input_ids", "token_type_ids", "attention_mask"]
    assert [f"{value.name}{value.shape}" for value in model.graph.outputs] == ["logits[batch,3]"]
    assert "classifier.weight" in model.graph.initializers
    assert (bert_file.parent / "tokenizer.json").is_file()
    module = transformers.AutoModelForSequenceClassification.from_pretrained(bert_folder).eval()
    ids = torch.randint(0, 40, (5, 19))
    mask = (torch.arange(19) < torch.tensor([[19], [3], [8], [1], [12]])).to(torch.int64)
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    (actual,) = session_of(bert_file).run(["logits"], {name: tensor.numpy() for name, tensor in feed.items()})
    with torch.no_grad():
        assert np.allclose(actual, module(**feed).logits.numpy(), atol=1e-5)


def test_the_file_says_nothing_about_this_machine_and_is_the_same_again(
    bert_folder: Path, bert_file: Path, tmp_path: Path
) -> None:
    assert not any(entry.key for node in onnx.load(bert_file).graph.node for entry in node.metadata_props)
    again = export(bert_folder, tmp_path / "model.onnx")
    assert again.read_bytes() == bert_file.read_bytes()


def test_a_task_chooses_the_class_and_outputs_can_be_chosen(bert_folder: Path, tmp_path: Path) -> None:
    features = export(bert_folder, tmp_path / "f.onnx", task="features", outputs=["pooler_output"])
    assert [value.name for value in onnx.load(features).graph.output] == ["pooler_output"]
    with pytest.raises(UsageError, match="no output 'nothing'; it has"):
        export(bert_folder, tmp_path / "g.onnx", task="features", outputs=["nothing"])


def test_files_that_are_there_are_replaced_on_request_only(bert_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(UsageError, match=r"has other files named config.json; .* --overwrite"):
        export(bert_folder, tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    export(bert_folder, tmp_path / "m.onnx", overwrite=True)
    assert (tmp_path / "config.json").read_text() != "mine"
    with pytest.raises(UsageError, match=r"m.onnx exists"):
        export(bert_folder, tmp_path / "m.onnx")
    export(bert_folder, tmp_path / "n.onnx")


def test_a_folder_of_sentence_transformers_needs_no_head(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=32, **SMALL)
    inner = tmp_path / "in/0_Transformer"
    transformers.BertModel(config).save_pretrained(inner)
    said = json.loads((inner / "config.json").read_text())
    (inner / "config.json").write_text(json.dumps({**said, "architectures": ["BertForMaskedLM"]}))
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "in/modules.json").write_text(json.dumps(modules))
    assert is_checkpoint(tmp_path / "in")
    found = onnx.load(export(tmp_path / "in", tmp_path / "m.onnx"))
    assert [value.name for value in found.graph.output] == ["last_hidden_state"]


def test_a_class_that_transformers_lacks_is_named(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "own")
    config = json.loads((tmp_path / "own/config.json").read_text())
    (tmp_path / "own/config.json").write_text(json.dumps({**config, "architectures": ["MyBertWithHead"]}))
    with pytest.raises(UnsupportedModelError, match="is a MyBertWithHead, which transformers does not have"):
        export(tmp_path / "own", tmp_path / "m.onnx")
    assert export(tmp_path / "own", tmp_path / "m.onnx", task="classification").is_file()


def test_a_task_whose_head_the_checkpoint_lacks_is_refused_before_the_work(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: pytest.fail("it was translated"))
    with pytest.raises(InvalidModelError, match=r"no weights for cls\.\w+.*choose the task"):
        export(bert_folder, tmp_path / "q.onnx", task="masked-lm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "problem"),
    [("clasification", "did you mean 'classification'"), ("seq2seq-lm", "does not fit it")],
)
def test_a_task_that_does_not_exist_or_fit(
    bert_folder: Path, tmp_path: Path, task: str, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        export(bert_folder, tmp_path / "q.onnx", task=task)


def test_a_folder_without_weights_or_configuration(bert_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"config\.json is not there"):
        export(tmp_path, tmp_path / "m.onnx")
    (tmp_path / "config.json").write_text((bert_folder / "config.json").read_text())
    with pytest.raises(InvalidModelError, match=r"weights .* is not there"):
        export(tmp_path, tmp_path / "m.onnx")
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InvalidModelError, match="cannot be loaded as a checkpoint"):
        export(tmp_path, tmp_path / "m.onnx")


@pytest.mark.parametrize("damage", [{"vocab_size": "many"}, {"initializer_range": None, "hidden_size": 0}])
def test_a_damaged_configuration_is_one_sentence(bert_folder: Path, tmp_path: Path, damage: dict) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "damaged")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **damage}))
    with pytest.raises(InvalidModelError, match="cannot be loaded as a checkpoint"):
        export(folder, tmp_path / "model.onnx")


def test_an_image_model(tmp_path: Path) -> None:
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SMALL)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    found = graphcompress.load(str(export(tmp_path / "vit", tmp_path / "vit.onnx")))
    assert [str(value.shape) for value in found.graph.inputs] == ["[batch,3,16,16]"]


class TwoOutputs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 4), torch.nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": self.first(x).relu(), "b": self.second(x)}


def test_a_module_is_a_model_and_stays_in_training_mode() -> None:
    module = TwoOutputs().train()
    model = graphcompress.capture(module, [torch.randn(1, 5, 8)])
    assert module.training
    assert [f"{value.name}{value.shape}" for value in model.graph.outputs] == [
        "a[batch,sequence,4]",
        "b[batch,sequence,6]",
    ]
    x = torch.randn(3, 2, 8)
    with Runner(model) as run, torch.no_grad():
        found = run({"x": x.numpy()})
        assert np.allclose(found["b"], module(x)["b"].numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PyTorch's own
def test_an_export_by_pytorch_before_changes_nothing(tmp_path: Path) -> None:
    """PyTorch's exporter leaves its last graph in the rewrite rules that both take from onnxscript."""
    module, x = TwoOutputs().eval(), torch.randn(1, 5, 8)
    before = graphcompress.capture(module, [x]).save(tmp_path / "before.onnx")
    torch.onnx.export(module.first, (x,), dynamo=True, verbose=False)
    after = graphcompress.capture(module, [x]).save(tmp_path / "after.onnx")
    assert after.read_bytes() == before.read_bytes()


def test_a_graph_module_and_fixed_axes() -> None:
    graph_module = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh()))
    model = graphcompress.capture(graph_module, (torch.randn(2, 8),), dynamic_axes={})
    assert [str(value.shape) for value in model.graph.outputs] == ["[2,4]"]
    assert [value.name for value in model.graph.outputs] == ["output"]


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [({}, "no example inputs"), ({"y": torch.zeros(1)}, "no argument 'y'"), ([3], "is int, not a tensor")],
)
def test_example_inputs_that_do_not_fit(inputs: object, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        graphcompress.capture(TwoOutputs(), inputs)  # type: ignore[arg-type]


class SeesItsMode(torch.nn.Module):
    """Answers otherwise at sizes it was not traced at."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (2.0 if torch.compiler.is_compiling() else 3.0)


def test_axes_of_an_input_that_is_none_are_named() -> None:
    with pytest.raises(UsageError, match="dynamic_axes names 'y', which is no input; the inputs are x"):
        graphcompress.capture(TwoOutputs(), {"x": torch.randn(1, 5, 8)}, dynamic_axes={"y": {0: "batch"}})


def test_an_answer_that_is_not_pytorchs_is_an_error() -> None:
    with pytest.raises(ContractError, match=r"output 'output' differs from PyTorch's by .* of its range"):
        graphcompress.capture(SeesItsMode(), [torch.ones(2, 4)])


class OnlyPython(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_cannot_be_traced_is_one_sentence() -> None:
    with pytest.raises(graphcompress.errors.UnsupportedModelError, match="torch cannot translate it to ONNX"):
        graphcompress.capture(OnlyPython(), [torch.ones(2, 4)])


def test_checks_run_at_three_sizes() -> None:
    feed = {"input_ids": torch.arange(20).reshape(2, 10), "mask": torch.ones(2, 10, dtype=torch.int64)}
    what = Traceable(torch.nn.Identity(), feed, default_axes(feed), longest=12)
    assert [found["mask"].shape for found in other_sizes(what)] == [(2, 10), (1, 6), (3, 12)]


def test_what_is_a_checkpoint_and_what_a_hub_name(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_checkpoint(bert_folder)
    assert not is_checkpoint(tmp_path)
    assert is_hub_name("owner/name")
    assert not any(map(is_hub_name, ("models/name", "model.onnx", "owner/model.onnx", "a/b/c", "/x")))


def test_a_model_lives_as_long_as_its_files(bert_folder: Path) -> None:
    model = open_model(bert_folder)
    assert model.path is not None
    folder, copy = model.path.parent, model.clone()
    del model
    assert folder.is_dir()
    del copy
    assert not folder.exists()


def test_optimize_takes_a_checkpoint_and_its_recipe_repeats_it(bert_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"w{i} w{i + 1} w3"}) + "\n" for i in range(8)))
    command = ["optimize", str(bert_folder), "--passes", "int8", "--data", str(data), "--no-bench"]
    run([*command, "-o", str(tmp_path / "one"), "--target", "cpu{measure=false}"])
    recipe = (tmp_path / "one" / "recipe.toml").read_text()
    assert f"{bert_folder.as_posix()}/model.safetensors" in recipe
    assert (tmp_path / "one" / "tokenizer.json").is_file()
    run(
        ["optimize", "--recipe", str(tmp_path / "one/recipe.toml"), "--no-bench", "-o", str(tmp_path / "two")]
    )
    assert (tmp_path / "one/model.onnx").read_bytes() == (tmp_path / "two/model.onnx").read_bytes()


def test_inspect_and_export_on_the_command_line(bert_folder: Path, tmp_path: Path) -> None:
    assert "attentions: 1" in run(["inspect", str(bert_folder), "--passes", "none"])
    said = run(["export", str(bert_folder), "-o", str(tmp_path / "m.onnx"), "--opset", "20"])
    assert "opset 20" in said
    assert "logits: FLOAT [batch,3]" in said


def run(arguments: list[str]) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("without_torch")
def test_a_missing_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"needs torch and transformers, .* 'graphcompress\[torch\]'"):
        needs_torch("export", "transformers")


def test_experts_of_transformers_are_looked_up_and_stay_as_they_were_set() -> None:
    torch.manual_seed(0)
    options = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    module = transformers.MixtralModel(transformers.MixtralConfig(vocab_size=40, **options)).eval()
    module.config.use_cache = False
    before = module.config._experts_implementation
    ids = torch.randint(0, 40, (2, 6))
    model = graphcompress.capture(module, {"input_ids": ids})
    stacks = [weight for name, weight in model.graph.initializers.items() if "experts.gate_up_proj" in name]
    assert [list(weight.shape or ()) for weight in stacks] == [[4, 128, 32]]
    assert module.config._experts_implementation == before
    with Runner(model) as run, torch.no_grad():
        expected = module(ids)[0].numpy()
        assert np.allclose(run({"input_ids": ids.numpy()})["last_hidden_state"], expected, atol=1e-5)
