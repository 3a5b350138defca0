"""Transfers read off HLO as TPUs write it: asynchronous once, fused sums scattered, ragged by what is sent."""

import pytest

from slicedice.cost.hlo import Collective, collectives

HLO = """HloModule step

%started (p: bf16[8,4]) -> (bf16[8,4], bf16[32,4]) {
  %ag.1 = bf16[32,4]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c = (bf16[8,4], bf16[32,4]) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.7 (p: bf16[8,4]) -> bf16[32,4] {
  ROOT %ag.2 = bf16[32,4]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
}

%done (p: bf16[8,4]) -> bf16[32,4] {
  %ag.3 = bf16[32,4]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c = bf16[32,4] custom-call(%ag.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p: f32[64,4]) -> f32[16,4] {
  %ar = f32[64,4]{1,0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %s = f32[16,4]{1,0} dynamic-slice(%ar)
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (t: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%t, %limit), direction=LT
}

%body (t: (s32[])) -> (s32[]) {
  %f1 = (bf16[8,4], bf16[32,4]) fusion(%t), kind=kCustom, calls=%started
  %f2 = bf16[32,4] fusion(%f1), kind=kCustom, calls=%async_collective_fusion.7
  %f3 = bf16[32,4] fusion(%f2), kind=kCustom, calls=%done
  %rows = bf16[100,2,128]{2,1,0:T(2,128)(2,1)} copy(%t)
  %room = bf16[200,2,128]{2,1,0:T(2,128)(2,1)} copy(%t)
  %r = bf16[200,2,128]{2,1,0:T(2,128)(2,1)} ragged-all-to-all(%rows, %room, %t), replica_groups={{0,1,2,3}}
  ROOT %n = (s32[]) tuple(%t)
}

ENTRY %main (p: f32[64,4]) -> f32[16,4] {
  %w = (s32[]) while(%p), condition=%condition, body=%body
  %norm = f32[] all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %f = f32[16,4] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_limit_that_stands_in_a_fusion_of_the_condition():
    fused = HLO.replace(
        """%condition (t: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
""",
        """%limits (t: s32[]) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
}

%condition (t: (s32[])) -> pred[] {
  %f = pred[] fusion(%t), kind=kLoop, calls=%limits
""",
    )
    assert fused != HLO
    assert collectives(fused) == collectives(HLO)


@pytest.mark.parametrize(
    ("known", "strange", "said"),
    [
        (
            "%limit = s32[]{:T(128)} constant(12)",
            "%limit = s32[] copy(%t)",
            "How often the loop of .* turns is not said",
        ),
        ("%norm = f32[]", "%norm = f4e2m1fn[8]", "a value of f4e2m1fn takes is not known"),
    ],
)
def test_what_cannot_be_read_is_not_guessed(known: str, strange: str, said: str):
    assert HLO.count(known) == 1
    with pytest.raises(ValueError, match=said):
        collectives(HLO.replace(known, strange))


def test_floats_of_a_byte():
    (moved,) = collectives(
        HLO[HLO.index("ENTRY") :]
        .replace("%norm = f32[]", "%norm = f8e4m3fn[32,4]")
        .replace("%w = (s32[]) while(%p), condition=%condition, body=%body", "")
    )
    assert moved == Collective("all-reduce", "f8e4m3fn[32,4]", 1, 2 * 7 / 8 * 128)


def test_a_step_as_tpus_write_it():
    assert collectives(HLO) == [
        Collective("ragged-all-to-all", "bf16[200,2,128]", 12, 12 * 3 / 4 * 100 * 256 * 2),
        Collective("all-gather", "bf16[32,4]", 12, 12 * 3 / 4 * 32 * 4 * 2),
        Collective("reduce-scatter", "f32[64,4]", 1, 3 / 4 * 64 * 4 * 4),
        Collective("all-reduce", "f32[]", 1, 2 * 7 / 8 * 4),
    ]


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,2,4},{1,3,5}}", 3),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['y'=2,'x'=4] {'x'}", 4),
        ("mesh['y'=2,'x'=4] {'y','x'}", 8),
        ("mesh['x'=8], device_ids=([2,4]T(1,0)) {'x'}", 8),
        ("mesh['y'=2,'x'=8] {'y','x':(2)4}", 8),
    ],
)
def test_groups_are_read_in_every_notation(groups: str, devices: int):
    line = f"  %g = f32[24]{{0}} all-gather(%p), replica_groups={groups}, dimensions={{0}}"
    (found,) = collectives(f"ENTRY %main (p: f32[24]) -> f32[24] {{\n{line}\n}}")
    assert found.received == pytest.approx((devices - 1) / devices * 24 * 4)


def test_groups_that_cannot_be_read_are_not_guessed():
    with pytest.raises(ValueError, match="not known here: %g = f32"):
        collectives("ENTRY %main (p: f32[8]) -> f32[8] {\n  %g = f32[8]{0} all-gather(%p), replica_groups=~7\n}")
