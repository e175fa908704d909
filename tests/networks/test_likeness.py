import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from promptseg.networks.contrast import standardized
from promptseg.networks.likeness import ITERATIONS, Likeness, solved
from promptseg.networks.prompt_encoder import Grid, Query, batch_queries

SPACING, STRIDE, SHAPE = (3.0, 1.0, 1.5), (1, 2, 2), (4, 7, 6)  # elements
WHOLE = Grid(shape=SHAPE, stride=STRIDE, spacing=SPACING)
POINTS = np.array([[0, 3, 2], [3, 13, 11], [1, 6, 5], [1, 7, 5.0]])
KINDS = [1, 0, 1, 0]
CHANNELS, IMAGE = 6, 2  # of the features and of the image


@pytest.fixture
def likeness():
    made = Likeness(IMAGE)
    with torch.no_grad():
        made.logarithms.copy_(torch.tensor([4.0, 1.5, 0.2, 0.8, 0.7]).log())
    return made


def compared(seed=0, images=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, CHANNELS + IMAGE, *SHAPE, generator=generator)


def queries(points=POINTS, kinds=KINDS):
    return batch_queries([Query(label=0, points=points, point_labels=kinds)])


def test_the_field_is_the_mean_of_a_gaussian_process_as_scikit_learn_has_it(likeness):
    maps, lacking = compared(), torch.tensor([[3.0, -2.0, 0.0, -1.5]])
    with torch.no_grad():
        field = likeness.field(maps, queries(), lacking, WHOLE)[0]
    middles = np.stack(
        np.meshgrid(
            *[(np.arange(n) + 0.5) * s for n, s in zip(SHAPE, STRIDE, strict=True)], indexing="ij"
        ),
        -1,
    )
    deviations = [1.5 * np.sqrt(CHANNELS)] * CHANNELS + [0.7 * np.sqrt(IMAGE)] * IMAGE
    looks = np.moveaxis(maps[0].numpy(), 0, -1) / deviations
    places = middles * SPACING / 4.0
    every = np.concatenate([places, looks], axis=-1)
    elements = tuple((POINTS // STRIDE).astype(int).T)
    clicked = np.concatenate([(POINTS + 0.5) * SPACING / 4.0, looks[elements]], axis=1)
    process = GaussianProcessRegressor(RBF(1.0, "fixed"), alpha=0.2, optimizer=None)
    process.fit(clicked, lacking[0].numpy())
    expected = 0.8 * process.predict(every.reshape(-1, every.shape[-1])).reshape(SHAPE)
    np.testing.assert_allclose(field.numpy(), expected, atol=1e-4)


def test_a_part_has_the_field_of_the_whole(likeness):
    part = Grid(shape=(2, 3, 4), stride=STRIDE, spacing=SPACING, first=(1, 3, 0))
    maps, lacking = compared(), torch.tensor([[3.0, -2.0, 0.0, -1.5]])
    with torch.no_grad():
        whole = likeness(maps, queries(), lacking, WHOLE)
        found = likeness(maps, queries(), lacking, part)
    assert whole.shape == (1, 1, 4, 14, 12) and found.shape == (1, 1, 2, 6, 8)
    torch.testing.assert_close(found, whole[(..., *part.at((1, 1, 1)).slices)])


def test_a_click_moves_what_looks_like_its_voxel_and_not_what_does_not(likeness):
    maps = torch.full((1, CHANNELS + IMAGE, *SHAPE), -2.0)
    maps[..., 2:4, 1:3] = 2.0  # two blobs alike
    maps[..., 2:4, 4:6] = 2.0
    one = queries([[1, 5, 3]], [1])
    with torch.no_grad():
        field = likeness.field(maps, one, torch.tensor([[4.0]]), WHOLE)[0]
    clicked, alike, unlike = field[1, 2, 1], field[1, 2, 4], field[1, 2, 3]
    assert clicked > alike > 5 * unlike > 0
    assert (field[3] < field[1]).all()  # further away


def test_a_click_that_lacks_nothing_holds_its_surroundings(likeness):
    maps = torch.zeros(1, CHANNELS + IMAGE, *SHAPE)
    points, lacking = [[1, 5, 3], [1, 5, 7]], torch.tensor([[4.0, 0.0]])
    with torch.no_grad():
        alone = likeness.field(maps, queries(points[:1], [1]), lacking[:, :1], WHOLE)[0]
        held = likeness.field(maps, queries(points, [1, 0]), lacking, WHOLE)[0]
    assert held[1, 2, 3] < 0.5 * alone[1, 2, 3] and held[1, 2, 1] > 0.5 * alone[1, 2, 1]


def test_padding_and_no_clicks_add_nothing(likeness):
    prompts = batch_queries([Query(label=0), Query(label=0, points=POINTS[:1], point_labels=[1])])
    maps, lacking = compared(images=2), torch.tensor([[5.0], [3.0]])
    with torch.no_grad():
        field = likeness(maps, prompts, lacking, WHOLE)
        alone = likeness(maps[1:], prompts[1:], lacking[1:], WHOLE)
        nothing = likeness(maps, batch_queries([Query(), Query()]), torch.zeros(2, 0), WHOLE)
    assert not field[0].any() and not nothing.any()
    torch.testing.assert_close(field[1:], alone)


@pytest.mark.parametrize("clicks", [1, 3, ITERATIONS])
def test_conjugate_gradients_solve_what_torch_solves(clicks):
    generator = torch.Generator().manual_seed(clicks)
    root = torch.randn(2, clicks, 4, generator=generator, dtype=torch.float64)
    kernel = root @ root.transpose(1, 2) / 4
    wanted = torch.randn(2, clicks, generator=generator, dtype=torch.float64)
    noise = torch.tensor(0.3, dtype=torch.float64)
    expected = torch.linalg.solve(kernel + noise * torch.eye(clicks), wanted)
    torch.testing.assert_close(solved(kernel, noise, wanted), expected, rtol=1e-5, atol=1e-5)
    assert not solved(kernel, noise, torch.zeros_like(wanted)).any()


def test_gradients_through_them_are_those_of_the_solution_in_float32_too():
    generator = torch.Generator().manual_seed(1)
    root, wanted = (torch.randn(1, 3, n, generator=generator) for n in (4, 1))
    gradients = []
    for solve, precision in ((solved, torch.float32), (_by_torch, torch.float64)):
        leaves = [root.to(precision).requires_grad_(), wanted.to(precision).requires_grad_()]
        kernel = leaves[0] @ leaves[0].transpose(1, 2) / 4
        found = solve(kernel, torch.tensor(0.3, dtype=precision), leaves[1][..., 0])
        gradients.append(torch.autograd.grad(found.pow(2).sum(), leaves))
    for ours, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-4)


def _by_torch(kernel, noise, wanted):
    return torch.linalg.solve(kernel + noise * torch.eye(kernel.shape[-1]), wanted)


def test_its_widths_noise_and_factor_are_learned_and_its_features_by_others(likeness):
    generator = torch.Generator().manual_seed(1)
    features = (7 + 3 * torch.randn(2, 5, *SHAPE, generator=generator)).requires_grad_()
    maps = standardized(features)
    assert not maps.requires_grad
    torch.testing.assert_close(maps.mean((2, 3, 4)), torch.zeros(2, 5), atol=0.05, rtol=0)
    torch.testing.assert_close(maps.std((2, 3, 4)), torch.ones(2, 5), atol=0.05, rtol=0)
    field = likeness(maps[:1], queries(), torch.tensor([[3.0, -2.0, 1.0, -1.5]]), WHOLE)
    field.square().sum().backward()
    gradient = likeness.logarithms.grad
    assert gradient.isfinite().all() and (gradient != 0).all()
