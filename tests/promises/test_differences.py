"""README's table of differences from torch is complete, and each of its lines is a test."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import tiered_embed as te

TESTS = Path(__file__).parents[1]
README = TESTS.parent / "README.md"

# Per line of the table, the tests that show it; those without a folder are below.
SHOWN_BY = {
    "parameters": [
        "loop/test_row_optimizer.py::test_the_parameter_is_the_touched_rows",
        "loop/test_row_optimizer.py::test_the_parameter_is_in_no_state_dict_and_keeps_its_dtype",
        "loop/test_row_optimizer.py::test_the_parameter_stays_out_of_buckets",
        "engine/test_passes.py::test_the_parameter_is_no_table",
        "modules/test_weight_copy.py::test_differentiating_through_it_is_refused",
        "modules/test_nn_protocols.py::test_weight_is_a_copy",
    ],
    "`state_dict`": [
        "modules/test_nn_protocols.py::test_a_state_dict_is_small_and_says_where_the_rows_are",
        "modules/test_nn_protocols.py::test_a_checkpoint_of_the_module_replaced_is_loaded",
        "modules/test_saved_state.py::test_rows_that_are_only_read_are_missed",
    ],
    "a second backward of one forward": [
        "modules/test_modules.py::test_a_second_backward_says_why_it_cannot_be",
    ],
    "several backwards before one step": [
        "engine/test_passes.py::test_clipping_and_accumulation_that_miss_the_rows_are_said_once",
    ],
    "clipping by torch": [
        "engine/test_passes.py::test_clipping_and_accumulation_that_miss_the_rows_are_said_once",
    ],
    "a `GradScaler`": [
        "engine/test_passes.py::test_a_scaler_that_the_rows_do_not_know_is_refused",
    ],
    "`zero_grad(set_to_none=False)`": [
        "test_zeroed_gradients_are_dropped_and_untouched_rows_do_not_move"
    ],
    "`requires_grad_` on one of several parameters of a collection": [
        "engine/test_passes.py::test_one_pool_is_frozen_alone",
        "test_the_step_count_of_adam_is_the_modules",
    ],
    "`copy.deepcopy`, `pickle`": [
        "modules/test_nn_protocols.py::test_copies_and_pickles_are_refused_with_a_reason",
    ],
    "default `mode`": ["test_bags_are_summed_unless_told_otherwise"],
    "`eval()`, `no_grad`": [
        "test_an_evaluation_has_no_gradients",
        "modules/test_nn_protocols.py::"
        "test_sample_weights_of_frozen_rows_with_max_norm_get_their_gradient",
    ],
    "`max_norm`": [
        "engine/test_updates.py::test_evaluation_with_max_norm_scales_copies",
        "modules/test_nn_protocols.py::test_a_frozen_module_with_max_norm_scales_copies",
        "test_max_norm_leaves_the_padding_row",
    ],
    "`scale_grad_by_freq`": ["test_a_gradient_is_scaled_by_its_own_rows_count"],
    "bad ids and offsets": [
        "modules/test_nn_protocols.py::test_outside_ids_are_refused_by_default",
        "modules/test_nn_protocols.py::test_outside_ids_are_clamped_to_the_nearest_row",
        "modules/test_nn_protocols.py::test_outside_ids_that_are_ignored_take_no_part_in_bags",
        "modules/test_bounds.py::test_a_warning_looks_up_row_0_and_leaves_pruned_ids_out",
        "engine/test_plain.py::test_errors_are_those_of_the_general_way",
    ],
    "dtypes": [
        "modules/test_nn_protocols.py::test_int8_rows_are_quantised_by_row_and_only_read",
        "spec/test_row_formats.py::test_the_reference_rounds_as_torch",
    ],
    "`model.to(device)`": ["test_a_module_that_would_move_refuses"],
    "`optimizer=None`": ["test_without_an_optimizer_rows_are_only_read"],
    "`model.half()` and the like": [
        "modules/test_modules.py::test_the_output_follows_the_models_dtype",
        "test_half_changes_no_stored_row",
    ],
    "`torch.compile`": [
        "promises/test_torch_companions.py::test_a_compiled_model_trains_the_same_rows",
    ],
    "`torch.export`, `jit.trace`, `jit.script`, `torch.fx`, transforms of `torch.func`": [
        "promises/test_torch_refusals.py",
    ],
    "`DistributedDataParallel`, FSDP": [
        "promises/test_torch_companions.py::test_ranks_share_the_dense_part_and_keep_their_rows",
        "promises/test_torch_companions.py::test_ranks_that_would_train_other_rows_are_refused",
    ],
}


def lines_of_the_table():
    text = README.read_text().partition("They differ from torch's in these points:")[2]
    table = re.search(r"\n\n(\|.*?)\n\n", text, re.DOTALL)
    assert table is not None
    return [line.split(" | ")[0].removeprefix("| ") for line in table[1].splitlines()[2:]]


def test_each_line_of_the_table_is_a_test():
    assert lines_of_the_table() == list(SHOWN_BY)


@pytest.mark.parametrize("line", SHOWN_BY)
def test_the_tests_of_a_line_exist(line):
    for name in SHOWN_BY[line]:
        path, _, test = name.rpartition("::") if "::" in name else ("", "", name)
        if name.endswith(".py"):
            assert (TESTS / name).is_file()
        else:
            source = TESTS / path if path else Path(__file__)
            assert f"\ndef {test}(" in source.read_text(), name


# --- lines that have no test elsewhere ------------------------------------------------------------

ROWS, DIM = 12, 4
TIERS = te.Tiers(ddr="1MiB")


def bag(**options):
    options.setdefault("optimizer", te.optim.SGD(lr=0.5))
    made = te.TieredEmbeddingBag(ROWS, DIM, tiers=TIERS, **options)
    if made.training and options["optimizer"] is not None:
        made.load_rows(torch.arange(ROWS), torch.randn(ROWS, DIM))
    return made


def test_bags_are_summed_unless_told_otherwise():
    made, ids = bag(), torch.tensor([[1, 2, 2]])
    assert torch.allclose(made(ids)[0], made.weight[[1, 2, 2]].sum(0))
    assert nn.EmbeddingBag(ROWS, DIM).mode == "mean"
    made.close()


def test_zeroed_gradients_are_dropped_and_untouched_rows_do_not_move():
    made = bag(optimizer=te.optim.MomentumSGD(lr=0.5, momentum=0.9), update="step")
    rows = te.row_optimizer(made)
    made(torch.tensor([[1, 2]])).sum().backward()
    rows.step()
    rows.zero_grad(set_to_none=False)
    before = made.weight.clone()
    made(torch.tensor([[3]])).sum().backward()
    (parameter,) = made.parameters()
    assert parameter.grad.shape == (1, DIM)
    rows.step()
    moved = (made.weight != before).any(1)
    assert moved.tolist() == [row == 3 for row in range(ROWS)]
    made.close()


def test_the_step_count_of_adam_is_the_modules():
    """torch counts per parameter: what was frozen in the first step would be at step 1."""
    adam = te.optim.Adam(lr=0.1)
    both = te.TieredEmbeddingBagCollection(
        [te.TableConfig("a", ROWS, DIM), te.TableConfig("b", ROWS, 2 * DIM)],
        tiers=TIERS,
        optimizer=adam,
    )
    first, second = both.parameters()
    one = torch.tensor([[1]])
    offsets = torch.tensor([0])
    for frozen in (second, None):
        for parameter in (first, second):
            parameter.requires_grad_(parameter is not frozen)
        out = both({"a": (one[0], offsets), "b": (one[0], offsets)})
        (out["a"].sum() + out["b"].sum()).backward()
    assert both.engine.steps == 2
    start = te.TieredEmbeddingBagCollection(
        [te.TableConfig("a", ROWS, DIM), te.TableConfig("b", ROWS, 2 * DIM)],
        tiers=TIERS,
        optimizer=adam,
    )
    moved = both.rows([1], "b") - start.rows([1], "b")
    m, v = 0.1 / (1 - 0.9**2), 0.001 / (1 - 0.999**2)  # of a gradient of 1, corrected for 2 steps
    torch.testing.assert_close(moved, torch.full_like(moved, -0.1 * m / v**0.5), rtol=1e-4, atol=0)
    both.close()
    start.close()


def test_an_evaluation_has_no_gradients():
    made, ids, weights = bag(), torch.tensor([[1, 2]]), torch.ones(1, 2, requires_grad=True)
    assert made(ids, None, weights).requires_grad
    assert not made.eval()(ids, None, weights).requires_grad
    made.train()
    with torch.no_grad():
        assert not made(ids, None, weights).requires_grad
    made.close()


def test_max_norm_leaves_the_padding_row():
    made = bag(max_norm=0.5, padding_idx=0)
    before = made.weight.clone()
    made(torch.tensor([[0, 1]])).sum().backward()
    assert torch.equal(made.weight[0], before[0])
    torch.testing.assert_close(
        made.weight[1], before[1] * (0.5 / (before[1].norm() + 1e-7)) - 0.5, rtol=1e-5, atol=1e-6
    )
    made.close()


def test_a_gradient_is_scaled_by_its_own_rows_count():
    made = bag(scale_grad_by_freq=True)
    before = made.weight.clone()
    made(torch.tensor([[1, 1, 1], [1, 2, 2]])).sum().backward()
    # Row 1 comes 4 times and row 2 twice, each with a gradient of 1: their mean is 1.
    moved = before - made.weight
    torch.testing.assert_close(moved[[1, 2]], torch.full((2, DIM), 0.5))
    assert not moved[3:].any()
    made.close()


def test_a_module_that_would_move_refuses():
    made = bag()
    with pytest.raises(te.ConfigError, match="cannot move"):
        nn.Sequential(made).to("meta")
    assert made(torch.tensor([[1, 2]])).device == made.device == torch.device("cpu")
    made.close()


def test_without_an_optimizer_rows_are_only_read():
    made = bag(optimizer=None)
    before = made.weight.clone()
    out = made(torch.tensor([[1, 2]]))
    assert not out.requires_grad
    assert torch.equal(made.weight, before)
    assert made.stats().steps == 0
    made.close()


def test_half_changes_no_stored_row():
    made = bag()
    digest = made.digest()
    assert made.half()(torch.tensor([[1, 2]])).dtype == torch.float16
    with torch.no_grad():
        assert made(torch.tensor([[1, 2]])).dtype == torch.float16
    assert made.digest() == digest
    assert made.rows([1]).dtype == torch.float32
    made.close()
