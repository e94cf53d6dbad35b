"""`rotate` against scipy's Procrustes problem and matrix powers."""

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power, orthogonal_procrustes

from konomi.merging.formulas import Knobs
from konomi.merging.rotation import rotate


def pair(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def centred(tensor, rows):
    flat = tensor.reshape(rows, -1).numpy()
    return flat - flat.mean(0), flat.mean(0)


@pytest.mark.parametrize(("shape", "rows"), [((12, 5), 12), ((5, 12), 5), ((4, 3, 3, 3), 12)])
def test_all_the_way_it_is_the_nearest_orthogonal_matrix(shape, rows):
    a, b = pair(*shape)
    (flat_a, _), (flat_b, mean) = centred(a, rows), centred(b, rows)
    q, _ = orthogonal_procrustes(flat_a, flat_b)
    merged = rotate([a, b], Knobs(alpha=1.0)).reshape(rows, -1).numpy()
    np.testing.assert_allclose(merged, flat_a @ q + mean, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_between_it_is_a_part_of_the_turn(seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    # Not too far apart, so that the principal power is one of small angles.
    b = a + 0.7 * torch.randn(20, 6, generator=generator, dtype=torch.float64)
    (flat_a, mean_a), (flat_b, mean_b) = centred(a, 20), centred(b, 20)
    q, _ = orthogonal_procrustes(flat_a, flat_b)
    assert np.linalg.det(q) > 0
    part = np.real(fractional_matrix_power(q, 0.3))
    merged = rotate([a, b], Knobs(alpha=0.3)).numpy()
    np.testing.assert_allclose(merged, flat_a @ part + 0.7 * mean_a + 0.3 * mean_b, atol=1e-10)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (3, 40), (3, 2, 3, 3), (6, 6)])
def test_lengths_and_angles_stay(shape):
    a, b = pair(*shape)
    rows = shape[0] * (shape[1] if len(shape) == 4 else 1)
    before, _ = centred(a, rows)
    for alpha in (0.0, 0.4, 1.0):
        after, _ = centred(rotate([a, b], Knobs(alpha=alpha)), rows)
        np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-9)
    torch.testing.assert_close(rotate([a, b], Knobs(alpha=0.0)), a)


def test_a_rotated_model_is_found_again():
    a, q = pair(30, 7)[0], torch.linalg.qr(pair(7, 7)[0]).Q
    torch.testing.assert_close(rotate([a, a @ q], Knobs(alpha=1.0)), a @ q)
