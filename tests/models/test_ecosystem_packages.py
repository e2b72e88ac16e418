"""Real models after `pellucid.swap` in other people's packages: ONNX, torchao, safetensors, transformers, Lightning and
Opacus. What torch itself does with models is in test_ecosystem.py."""

from __future__ import annotations

import copy
import io
import logging
import warnings

import pytest
import torch

import pellucid
from pellucid import nn
from pellucid.benchmark.zoo import ZOO
from pellucid.models.structures import difference, mapped, ramp, tensors
from pellucid.nn.swapped.exchange import kind_of

pytest.importorskip("transformers", reason="the real models are built from transformers' code")
logging.getLogger("transformers").setLevel(logging.ERROR)
KNOWN = {known.name: known for known in ZOO}


def swapped(name, training=False):
    """A real model with pellucid's layers, an example, and the model's outputs for it."""
    model, inputs = KNOWN[name].make(tiny=True)
    model.train(training)
    assert pellucid.swap(model).replaced
    return model, inputs


def outputs(model, inputs):
    with torch.no_grad():
        return [y.clone() for y in tensors(model(**inputs))]


def farthest(found, expected):
    return max(difference(a, b) for a, b in zip(found, expected, strict=True))


def classes(model):
    return {path: kind_of(module) for path, module in model.named_modules()}


# -- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx():
    """Exports a model, and returns the file's operators and what onnxruntime computes by it."""
    pytest.importorskip("onnxscript", reason="torch.onnx writes files by it")
    runtime = pytest.importorskip("onnxruntime", reason="it runs the files")

    def export(model, inputs, sizes):
        program = torch.onnx.export(model, (), kwargs=inputs, dynamo=True, dynamic_shapes=sizes, verbose=False)
        file = io.BytesIO()
        program.save(file)
        session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

        def run(inputs):
            return [torch.from_numpy(y) for y in session.run(None, {name: x.numpy() for name, x in inputs.items()})]

        return [node.op_type for node in program.model.graph], run

    return export


FREE = torch.export.Dim.DYNAMIC
EXPORTED = {
    "forecaster (LSTM)": ({"past": {0: FREE, 1: FREE}}, lambda: {"past": torch.randn(5, 30, 3)}),
    "ResNet-18": ({"pixel_values": {0: FREE}}, lambda: {"pixel_values": torch.randn(3, 3, 32, 32)}),
    "BERT": ({"input_ids": {0: FREE, 1: FREE}}, lambda: {"input_ids": torch.randint(1000, (3, 20))}),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:The tensor attributes")
@pytest.mark.parametrize("name", EXPORTED)
def test_a_restored_model_goes_into_an_onnx_file(onnx, name):
    model, inputs = swapped(name)
    sizes, other = EXPORTED[name]
    wanted = [(x, outputs(model, x)) for x in (inputs, other())]
    pellucid.restore(model)
    operators, run = onnx(model, inputs, sizes)
    assert operators.count("LSTM") == (2 if name == "forecaster (LSTM)" else 0)
    for x, expected in wanted:
        assert farthest(run(x), expected) < 1e-5


@pellucid.cell
def integrator(x, h, *, U, W):
    return 0.9 * h + torch.tanh(x @ U + h @ W)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_cell_of_ones_own_is_written_out(onnx):
    layer, example = integrator(3, 4, bidirectional=True).eval(), {"x": torch.randn(5, 2, 3)}
    with pytest.warns(pellucid.PellucidWarning, match="cell integrator is written out step by step for ONNX"):
        _, run = onnx(layer, example, {"x": {1: FREE}})
    other = {"x": torch.randn(5, 7, 3)}
    assert farthest(run(other), outputs(layer, other)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", [nn.RNN(3, 4), nn.GRU(3, 4, 2), nn.LSTM(3, 4), integrator(3, 4)], ids=repr)
def test_a_recurrent_layer_by_itself_goes_into_an_older_onnx_file(onnx, layer):
    runtime, file, x = pytest.importorskip("onnxruntime"), io.BytesIO(), torch.randn(5, 2, 3)
    torch.onnx.export(layer, (x,), file, dynamo=False)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    y = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(y), layer(x)[0].detach(), rtol=1e-5, atol=1e-5)


# -- quantisation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("name", ["BERT", "CRNN (LSTM)"])
def test_torchao_quantises_linear_layers_beside_pellucids(name, config):
    quantization = pytest.importorskip("torchao.quantization")
    model, inputs = swapped(name)
    expected, before = outputs(model, inputs), classes(model)
    quantization.quantize_(model, getattr(quantization, config)())
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert linear
    assert all(type(module.weight).__module__.startswith("torchao.") for module in linear)
    assert classes(model) == before
    found = outputs(model, inputs)
    assert 0 < farthest(found, expected) < 2e-2
    pellucid.restore(model)
    assert farthest(outputs(model, inputs), found) < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torch_quantises_the_recurrent_layers_of_a_restored_model():
    model, inputs = swapped("forecaster (GRU)")
    expected = outputs(model, inputs)
    pellucid.restore(model)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.GRU, torch.nn.Linear})
    assert isinstance(quantised.rnn, torch.ao.nn.quantized.dynamic.GRU)
    assert 0 < farthest(outputs(quantised, inputs), expected) < 2e-2


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GPT-2", "CRNN (LSTM)", "Wav2Vec2"])
def test_safetensors_of_a_swapped_model_are_anybodys(tmp_path, name):
    """GPT-2 ties two weights, Wav2Vec2 computes one."""
    safetensors = pytest.importorskip("safetensors.torch")
    model, inputs = swapped(name)
    expected = outputs(model, inputs)
    safetensors.save_model(model, tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for ours in (False, True):
        for load in (
            lambda other: safetensors.load_model(other, tmp_path / "model.safetensors"),
            lambda other: other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True)),
        ):
            other = KNOWN[name].make(tiny=True)[0].eval()
            if ours:
                pellucid.swap(other)
            with torch.no_grad():
                for parameter in other.parameters():
                    parameter.fill_(0.5)
            load(other)
            assert farthest(outputs(other, inputs), expected) < 1e-5


def test_a_swapped_model_is_saved_and_loaded_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, inputs = swapped("GPT-2")
    model.save_pretrained(tmp_path)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert type(loaded.transformer.ln_f) is torch.nn.LayerNorm
    assert farthest(outputs(loaded, inputs), outputs(model, inputs)) < 1e-5
    assert model.lm_head.weight is model.transformer.wte.weight


# -- training ---------------------------------------------------------------------------------------------------------


def test_lightning_trains_and_goes_on_from_a_checkpoint(tmp_path):
    lightning = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Forecast(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = KNOWN["forecaster (LSTM)"].make(tiny=True)[0]
            self.losses = []

        def configure_model(self):
            pellucid.swap(self.network)

        def training_step(self, batch, index):
            loss = torch.nn.functional.mse_loss(self.network(batch[0]), batch[1])
            self.losses.append(float(loss))
            return loss

        def validation_step(self, batch, index):
            self.log("error", torch.nn.functional.mse_loss(self.network(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2)

    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(8, 9, 3), torch.randn(8, 24))

    def fit(epochs, **options):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        module = Forecast()
        for layer in module.network.modules():  # two trainings draw alike only if they draw nothing
            if isinstance(layer, (torch.nn.Dropout, torch.nn.LSTM)):
                setattr(layer, "p" if isinstance(layer, torch.nn.Dropout) else "dropout", 0.0)
        loader = torch.utils.data.DataLoader(data, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a few workers, of a file that is there
            warnings.simplefilter("error", pellucid.PellucidWarning)
            trainer.fit(module, loader, loader, **options)
        return trainer, module

    trainer, _ = fit(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(4, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    _, whole = fit(4)
    assert type(resumed.network.rnn) is nn.LSTM
    assert len(resumed.losses) == 4
    assert whole.losses[6] < whole.losses[0]  # the same batch, three epochs later
    torch.testing.assert_close(resumed.losses, whole.losses[4:])
    torch.testing.assert_close(list(resumed.parameters()), list(whole.parameters()))


class Output(torch.nn.Module):
    """The output of a recurrent layer, without its last state, past the layer's hooks."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer.forward(x)[0]


def of_every_sample(layer, activations, gradients):
    """What Opacus takes for a layer of several results."""
    output = Output(layer)

    def product(parameters, x, gradient):
        return (torch.func.functional_call(output, parameters, (x,)) * gradient).sum()

    parameters = dict(output.named_parameters())
    found = torch.func.vmap(torch.func.grad(product), (None, 0, 0))(parameters, activations[0], gradients)
    return {parameter: found[name] for name, parameter in parameters.items()}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["forecaster (GRU)", "ConvNeXt"])
def test_opacus_gives_gradients_of_every_sample(name):
    opacus = pytest.importorskip("opacus.grad_sample")
    opacus.register_grad_sampler(nn.GRU)(of_every_sample)
    model, inputs = swapped(name, training=True)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval().requires_grad_(False)  # it mixes samples
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.GRU):
            module.dropout = 0.0
    alone = copy.deepcopy(model)
    pellucid.restore(alone)
    ramp(list(tensors(opacus.GradSampleModule(model, loss_reduction="sum")(**inputs)))).backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    for i in range(2):
        alone.zero_grad()
        ramp(list(tensors(alone(**mapped(lambda x, i=i: x[i : i + 1], inputs))))).backward()
        for name in trained:
            expected = alone.get_parameter(name).grad
            torch.testing.assert_close(model.get_parameter(name).grad_sample[i], expected, rtol=1e-4, atol=1e-5)
