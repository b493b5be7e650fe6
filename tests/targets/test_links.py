"""Outputs that are probabilities: camlib explains their logits, and metrics read them as they are."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import camlib
from camlib import metrics, targets
from camlib.inputs import links


class Network(nn.Module):
    """Convolution, ReLU, mean, linear, and a final function."""

    def __init__(self, classes, final, scale=1.0, bias=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.convolution = nn.Conv2d(3, 5, 3)
            self.relu = nn.ReLU()
            self.linear = nn.Linear(5, classes)
        self.linear.weight.data *= scale
        self.linear.bias.data += bias
        self.final = final
        self.double().eval()

    def logits(self, images):
        return self.linear(self.relu(self.convolution(images)).mean((2, 3)))

    def forward(self, images):
        return self.final(self.logits(images))


def images(count=3, seed=0):
    return torch.rand(count, 3, 9, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grad_cam(network, inputs, column, sign=1):
    """Grad-CAM of sign times a logit, by plain autograd."""
    activations = network.relu(network.convolution(inputs)).detach().requires_grad_()
    logits = network.linear(activations.mean((2, 3)))
    (gradients,) = torch.autograd.grad(sign * logits[:, column].sum(), activations)
    return (gradients.mean((2, 3), keepdim=True) * activations).sum(1).detach()


SIGMOIDS = {
    "function": torch.sigmoid,
    "method": lambda z: z.sigmoid(),
    "module": nn.Sigmoid(),
    "squeezed": lambda z: torch.sigmoid(z).squeeze(1),
    "in place": lambda z: z.clone().sigmoid_(),
    "copied": lambda z: torch.sigmoid(z).clone(),
    "clamped": lambda z: torch.sigmoid(z).clamp(1e-7, 1 - 1e-7),
    "in a mapping": lambda z: {"logits": torch.sigmoid(z)},
    "half of a softmax": lambda z: torch.cat([0 * z, z], 1).softmax(1)[:, 1],
    "logarithm": F.logsigmoid,
    "half of a logarithm": lambda z: torch.cat([0 * z, z], 1).log_softmax(1)[:, 1:],
}
SOFTMAXES = {
    "function": lambda z: F.softmax(z, dim=1),
    "method": lambda z: z.softmax(-1),
    "module": nn.Softmax(1),
    "sliced": lambda z: torch.softmax(z, 1)[:, :3],
    "copied": lambda z: z.softmax(1).float().double(),
    "logarithm": nn.LogSoftmax(1),
}


@pytest.mark.parametrize("final", SIGMOIDS.values(), ids=SIGMOIDS)
@pytest.mark.parametrize("bias", [-2.0, 2.0])
def test_class_of_a_network_that_ends_in_a_sigmoid_is_that_of_its_logit(final, bias):
    network, inputs = Network(1, final, bias=bias), images()
    explanation = camlib.GradCAM(network, "relu", relu=False)(inputs)
    predicted = network.logits(inputs)[:, 0] > 0
    assert explanation.target.tolist() == predicted.long().tolist()
    assert bool(predicted.all()) == (bias > 0)
    expected = grad_cam(network, inputs, 0, 1 if bias > 0 else -1)
    torch.testing.assert_close(explanation.maps, expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(explanation.scores, network.logits(inputs)[:, 0].abs().detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("final", SOFTMAXES.values(), ids=SOFTMAXES)
@pytest.mark.parametrize("method", [camlib.GradCAM, camlib.ScoreCAM, camlib.AblationCAM, camlib.GradCAMPlusPlus])
def test_map_of_a_network_that_ends_in_a_softmax_is_that_of_its_logits(final, method):
    network, plain = Network(4, final), Network(4, nn.Identity())
    explanation = method(network, "relu", relu=False)(images(), [2, 0, 1])
    expected = method(plain, "relu", relu=False)(images(), [2, 0, 1])
    torch.testing.assert_close(explanation.maps, expected.maps)
    torch.testing.assert_close(explanation.scores, expected.scores)


@pytest.mark.parametrize("final", [nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1)])
def test_saturated_probability_has_the_map_of_its_logit(final):
    network, inputs = Network(4, final, scale=1e4).float(), images().float()
    column = network.logits(inputs).argmax(1)
    explanation = camlib.GradCAM(network, "relu", relu=False)(inputs)
    assert explanation.target.tolist() == column.tolist()
    expected = torch.stack([grad_cam(network, inputs, int(c))[n] for n, c in enumerate(column)])
    assert float(expected.abs().amax((1, 2)).min()) > 1
    torch.testing.assert_close(explanation.maps, expected)


def test_probabilities_without_known_logits_are_explained_by_their_logarithm():
    def by_hand(z):
        return z.exp() / z.exp().sum(1, keepdim=True)

    network, inputs = Network(4, by_hand), images()
    explanation = camlib.GradCAM(network, "relu", relu=False)(inputs, 2)
    chances = network.logits(inputs).softmax(1)
    torch.testing.assert_close(explanation.scores, chances[:, 2].log().detach())
    of_each = torch.stack([grad_cam(network, inputs, column) for column in range(4)], 1)
    expected = of_each[:, 2] - (chances[:, :, None, None] * of_each).sum(1)
    torch.testing.assert_close(explanation.maps, expected.detach())


def test_saturated_probability_without_known_logits_warns():
    def by_hand(z):
        return z.exp() / z.exp().sum(1, keepdim=True)

    network = Network(4, by_hand, bias=torch.tensor([9.0, 0, 0, 0]))
    with pytest.warns(camlib.CamlibWarning, match=r"0\.999.*saturated.*do not show the logits.*forward="):
        camlib.GradCAM(network, "relu")(images(1), 0)
    camlib.ScoreCAM(network, "relu")(images(1), 0)  # compares scores: a warning would be an error here


def test_outputs_that_only_look_like_probabilities_are_logits():
    plain = torch.tensor([[0.25, 0.5], [0.125, 0.25]])
    assert links.ending_of(plain) is None
    assert targets.class_logits(plain) is plain
    network = Network(1, nn.Identity(), scale=0.01, bias=0.3)
    outputs = network(images())
    assert bool(((outputs > 0) & (outputs < 0.5)).all())
    assert camlib.GradCAM(network, "relu")(images()).target.tolist() == [1, 1, 1]  # 0.3 is a positive logit


def test_single_similarity_that_happens_to_lie_between_0_and_1_is_a_logit():
    scale = torch.tensor(0.1, dtype=torch.float64)
    network = Network(1, lambda z: scale.exp() * z, scale=0.01, bias=0.3)
    assert camlib.GradCAM(network, "relu")(images()).target.tolist() == [1, 1, 1]


def test_network_that_returns_logits_and_probabilities_is_explained_by_the_logits():
    def both(z):
        return {"logits": z, "probabilities": z.sigmoid()}

    network = Network(1, both, scale=0.01, bias=0.3)
    explanation = camlib.GradCAM(network, "relu")(images())
    torch.testing.assert_close(explanation.scores, network.logits(images())[:, 0].detach())


@pytest.mark.parametrize("final", [nn.Softmax(1), lambda z: z.exp() / z.exp().sum(1, keepdim=True), nn.LogSoftmax(1)])
def test_metrics_do_not_apply_a_softmax_twice(final):
    network, plain = Network(4, final), Network(4, nn.Identity())
    heatmaps = torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(1))
    clean = plain(images()).softmax(1)[:, 1].detach()
    masked = plain(images() * heatmaps[:, None]).softmax(1)[:, 1].detach()
    torch.testing.assert_close(metrics.Scorer(network, images(), 1).clean, clean)
    expected = (clean - masked).clamp(min=0) / clean
    torch.testing.assert_close(metrics.average_drop(network, images(), heatmaps, 1), expected)
    outputs = network(images()).detach()
    torch.testing.assert_close(metrics.Scorer(network, images(), 1, outputs=outputs).clean, clean)


@pytest.mark.parametrize("final", SIGMOIDS.values(), ids=SIGMOIDS)
def test_metrics_do_not_apply_a_sigmoid_twice(final):
    network, chance = Network(1, final), Network(1, nn.Sigmoid())(images())[:, 0].detach()
    outputs = network(images())
    # Bare logarithms of probabilities look like logits.
    shown = isinstance(outputs, dict) or float(outputs.detach().min()) >= 0
    given = (outputs if isinstance(outputs, dict) else outputs.detach()) if shown else None
    for known in (None, given):
        scorer = metrics.Scorer(network, images(), [1, 0, 1], outputs=known)
        torch.testing.assert_close(scorer.clean, torch.stack([chance[0], 1 - chance[1], chance[2]]))


def test_labels_have_probabilities_of_their_own():
    ends, plain = Network(4, nn.Sigmoid()), Network(4, nn.Identity())
    expected = plain(images()).sigmoid()[:, 3].detach()
    torch.testing.assert_close(metrics.Scorer(ends, images(), 3).clean, expected)
    torch.testing.assert_close(metrics.Scorer(ends, images(), 3, link="sigmoid").clean, expected)
    torch.testing.assert_close(metrics.Scorer(plain, images(), 3, link="sigmoid").clean, expected)
    torch.testing.assert_close(metrics.Scorer(plain, images(), 3).clean, plain(images()).softmax(1)[:, 3].detach())
    heatmaps = torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(1))
    masked = plain(images() * heatmaps[:, None]).sigmoid()[:, 3].detach()
    drop = (expected - masked).clamp(min=0) / expected
    torch.testing.assert_close(metrics.average_drop(plain, images(), heatmaps, 3, link="sigmoid"), drop)
    table = camlib.evaluate(plain, images(), ["grad_cam"], ["relu"], ["average_drop"], target=3, link="sigmoid")
    one = camlib.GradCAM(plain, "relu")(images(), 3).heatmaps()
    values = metrics.average_drop(plain, images(), one, 3, link="sigmoid")
    torch.testing.assert_close(table.values[table.rows[0]]["average_drop"], values.double())


def test_outputs_are_taken_as_probabilities_if_the_link_is_the_identity():
    outputs = torch.tensor([[0.25], [0.5]])
    assert targets.class_probabilities(outputs, "identity").tolist() == [[0.75, 0.25], [0.5, 0.5]]
    bound = targets.bind(targets.Probability(1, link="identity"), outputs)
    assert targets.score(bound, outputs, torch.tensor([0, 1])).tolist() == [0.25, 0.5]


def test_unknown_and_superfluous_links_are_refused():
    network = Network(4, nn.Identity())
    with pytest.raises(camlib.CamlibValueError, match='link must be "softmax", "sigmoid", "identity" or None'):
        targets.Confidence(1, link="probit")
    with pytest.raises(camlib.CamlibValueError, match="another score is given"):
        metrics.Scorer(network, images(), 1, score=targets.Classes, link="sigmoid")
    with pytest.raises(camlib.CamlibValueError, match="a single output has no softmax"):
        targets.class_probabilities(torch.zeros(2, 1), "softmax")


def test_region_of_a_segmentation_that_ends_in_a_sigmoid_is_where_its_logit_is_positive():
    class Dense(Network):
        def logits(self, inputs):
            found = self.relu(self.convolution(inputs)).sum(1, keepdim=True)
            return found - found.mean()

    network = Dense(1, nn.Sigmoid())
    logits = network.logits(images())
    expected = torch.stack([one[one > 0].mean() for one in logits]).detach()
    explanation = camlib.GradCAM(network, "relu")(images(), targets.Region(1))
    torch.testing.assert_close(explanation.scores, expected)


def test_graph_tells_the_ending_of_outputs_from_elsewhere():
    logits = torch.tensor([[1.0, 3.0], [2.0, -1.0]], requires_grad=True)
    assert links.ending_of(logits.sigmoid()[:, :1].squeeze(1)) == "sigmoid"
    assert links.ending_of(logits.softmax(1)) == "softmax"
    assert links.ending_of(logits.sigmoid() * 1) is None
    torch.testing.assert_close(targets.class_logits(logits.sigmoid()), logits)


def test_class_zero_of_a_single_output_is_explained_with_a_warning():
    network = Network(1, nn.Identity())
    advice = r"negative class, whose logit is -y.*Output\(0\).*BinaryLogit\(positive=False\)"
    with pytest.warns(camlib.CamlibWarning, match=advice):
        explanation = camlib.GradCAM(network, "relu", relu=False)(images(), 0)
    torch.testing.assert_close(explanation.maps, grad_cam(network, images(), 0, -1))
    camlib.GradCAM(network, "relu")(images(), [0, 1, 0])  # labels of images, without a warning


@pytest.mark.parametrize("method", [camlib.GradCAM, camlib.ScoreCAM, camlib.AblationCAM])
@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize(
    "classes", [[[0, 0]], [[0, 1]], [[1, 0, 1]], [[0, 0], [1, 0]], [[1], [0]], [0, 1], [0]], ids=str
)
def test_several_classes_of_a_single_output_are_each_plus_or_minus_it(classes, squeeze, method):
    network, inputs = Network(1, (lambda z: z[:, 0]) if squeeze else nn.Identity()), images(len(classes))
    explanation = method(network, "relu", relu=False)(inputs, classes)
    assert explanation.target.tolist() == classes
    signs = 2 * torch.tensor(classes).reshape(len(inputs), -1) - 1
    logits = network.logits(inputs).detach()
    torch.testing.assert_close(explanation.scores.reshape(signs.shape), signs * logits)
    maps = explanation.maps.reshape(*signs.shape, *explanation.maps.shape[-2:])
    for (n, k), sign in np.ndenumerate(signs.numpy()):
        if method is camlib.GradCAM:
            expected = grad_cam(network, inputs[n : n + 1], 0, int(sign))[0]
        else:
            target = targets.BinaryLogit(positive=bool(sign > 0))
            expected = method(network, "relu", relu=False)(inputs[n : n + 1], target).maps[0]
        torch.testing.assert_close(maps[n, k], expected)


@pytest.mark.parametrize("method", [camlib.GradCAM, camlib.RISE])
def test_a_list_of_classes_is_not_taken_for_several_classes_of_one_image(method):
    message = r"shape \(2,\) for 1 images.*several per image \(1, K\), here \[\[0, 0\]\]"
    with pytest.raises(camlib.CamlibValueError, match=message):
        method(Network(1, nn.Identity()))(images(1), [0, 0])
    with pytest.raises(camlib.CamlibValueError, match=r"shape \(1,\) for 3 images.*one per image \(3,\)"):
        method(Network(1, nn.Identity()))(images(3), [0])


def test_single_output_of_a_bounded_function_is_a_probability():
    network = Network(1, nn.Hardsigmoid(), bias=-0.5)
    chance = network(images())[:, 0].detach()
    assert bool(((chance > 0) & (chance < 0.5)).all())
    assert camlib.GradCAM(network, "relu")(images()).target.tolist() == [0, 0, 0]
    torch.testing.assert_close(metrics.Scorer(network, images(), [1, 1, 1]).clean, chance)


BY_HAND = {
    "reciprocal": lambda z: 1 / (1 + torch.exp(-z)),
    "tanh": lambda z: (torch.tanh(z) + 1) / 2,
    "sum": lambda z: 0.5 * torch.tanh(z) + 0.5,
    "product": lambda z: 0.5 * (torch.tanh(z) + 1),
    "quotient": lambda z: z.exp() / (1 + z.exp()),
}


@pytest.mark.parametrize("final", BY_HAND.values(), ids=BY_HAND)
def test_single_output_that_may_be_a_probability_is_explained_with_a_warning(final):
    network = Network(1, final, bias=-0.5)
    chance = network(images())[:, 0].detach()
    with pytest.warns(camlib.CamlibWarning, match=r'lie in \[0, 1\].*taken for logits.*link="identity"'):
        camlib.GradCAM(network, "relu")(images())
    with pytest.warns(camlib.CamlibWarning, match='link="identity"'):
        metrics.Scorer(network, images())
    torch.testing.assert_close(metrics.Scorer(network, images(), [1, 1, 1], link="identity").clean, chance)
    explanation = camlib.GradCAM(network, "relu")(images(), targets.Probability(link="identity"))
    assert explanation.target.tolist() == [0, 0, 0]
    torch.testing.assert_close(explanation.scores, 1 - chance)


def test_ending_is_learned_from_outputs_that_are_finite():
    network, spoilt = Network(4, lambda z: z.exp() / z.exp().sum(1, keepdim=True)), images()
    spoilt[1, 0, 0, 0] = torch.nan
    cam = camlib.GradCAM(network, "relu")
    with pytest.raises(camlib.CamlibRuntimeError, match="not finite"):
        cam(spoilt, 1)
    torch.testing.assert_close(cam(images(), 1).scores, network(images())[:, 1].log().detach())


@pytest.mark.parametrize("last", [lambda x: x.clamp(min=0), lambda x: x.clamp(0, 6), lambda x: x.exp()])
@pytest.mark.filterwarnings("ignore::camlib.CamlibWarning")
def test_outputs_that_may_exceed_one_are_not_probabilities_whatever_came_first(last) -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, images: Tensor) -> Tensor:
            return last(self.body(images).sum(1, keepdim=True))

    torch.manual_seed(0)
    model, images = Bounded().eval(), torch.rand(2, 3, 16, 16)
    small, large = images * 1e-3, images * 20
    cam = camlib.GradCAM(model)
    cam(small, 1)
    assert torch.equal(cam(large, 1).scores, camlib.GradCAM(model)(large, 1).scores)
    torch.testing.assert_close(cam(large, 1).scores, model(large)[:, 0])


SEVERAL = {
    "hard sigmoid": F.hardsigmoid,
    "two heads": lambda z: torch.cat([z[:, :1].sigmoid(), z[:, 1:].sigmoid()], 1),
    "a head for each label": lambda z: torch.cat([z[:, k : k + 1].sigmoid() for k in range(3)], 1),
    "stacked heads": lambda z: torch.stack([z[:, k].sigmoid() for k in range(3)], 1),
}


@pytest.mark.parametrize("final", SEVERAL.values(), ids=SEVERAL)
def test_probabilities_of_several_labels_are_judged_as_they_are(final):
    network, inputs = Network(3, final), images()
    torch.testing.assert_close(metrics.Scorer(network, inputs, 1).clean, network(inputs)[:, 1].detach())


def test_probabilities_of_several_labels_computed_by_hand_are_warned_of():
    network, inputs = Network(3, lambda z: 1 / (1 + torch.exp(-z))), images()
    with pytest.warns(camlib.CamlibWarning, match=r"lie in \[0, 1\].*link=\"identity\""):
        metrics.Scorer(network, inputs, 1)
    given = metrics.Scorer(network, inputs, 1, link="identity").clean
    torch.testing.assert_close(given, network(inputs)[:, 1].detach())


def test_two_softmax_heads_that_are_joined_are_warned_of():
    network, inputs = Network(4, lambda z: torch.cat([z[:, :2].softmax(1), z[:, 2:].softmax(1)], 1)), images()
    with pytest.warns(camlib.CamlibWarning, match=r"lie in \[0, 1\].*link=\"identity\""):
        metrics.Scorer(network, inputs, 1)
