"""Machine code by hand: blocks, how often they run, how long a warp waits in them."""

import pytest

from setok_bench import assembler, sass
from setok_bench.machine import H200
from setok_bench.sass import Block, Instruction

# As nvdisasm prints it: a loop over a shuffle, its slow path, and a subroutine.
TEXT = """
.text.some_kernel:
\t//## File ".nv_debug_ptx_txt", line 43
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
                                                               /* 0x000e300000000800 */
.L_x_1:
\t//## File ".nv_debug_ptx_txt", line 50
        /*0010*/                   SHFL.BFLY PT, R3, R2, 0x1 ; /* 0x0c201f0002037f89 */
                                                               /* 0x000e6400000e0000 */
\t//## File ".nv_debug_ptx_txt", line 51
        /*0020*/              @!P0 BRA `(.L_x_1) ;             /* 0xfffffffc00e00947 */
                                                               /* 0x002fea000383ffff */
        /*0030*/                   EXIT ;                      /* 0x000000000000794d */
                                                               /* 0x000fea0003800000 */
.L_x_2:
\t//## File ".nv_debug_ptx_txt", line 50
        /*0040*/                   WARPSYNC.COLLECTIVE R4, `(.L_x_3) ; /* 0x0000000004007348 */
                                                               /* 0x000fea0003c00000 */
        /*0050*/                   SHFL.BFLY PT, R3, R2, 0x1 ; /* 0x0c201f0002037f89 */
                                                               /* 0x000e6400000e0000 */
$__internal_0_$__cuda_sm3x_div_rn_noftz_f32_slowpath:
        /*0060*/                   SHFL.IDX PT, R3, R2, 0x1 ;  /* 0x0c201f0002037f89 */
                                                               /* 0x000e6400000e0000 */
.L_x_9:
        /*0070*/                   NOP ;                       /* 0x0000000000007918 */
                                                               /* 0x000fc00000000000 */
"""
RUNS = {43: 4, 50: 40, 51: 40}


def test_the_text_of_the_disassembler():
    blocks = sass.parse(TEXT)
    names = [[i.opcode for i in b.instructions] for b in blocks]
    loop = ["SHFL.BFLY", "BRA"]
    slow = ["WARPSYNC.COLLECTIVE", "SHFL.BFLY"]
    assert names == [["LDC"], loop, ["EXIT"], slow, ["SHFL.IDX"]]
    assert [b.off_path for b in blocks] == [False, False, False, True, True]
    load, shuffle = blocks[0].instructions[0], blocks[1].instructions[0]
    # Bits 105 to 108: clocks; 110 to 112: the scoreboard of the result; 116 to 121: those awaited.
    assert (load.line, load.stall, load.sets, load.waits) == (43, 8, ((0, True),), ())
    assert (shuffle.stall, shuffle.sets) == (2, ((1, True),))
    assert blocks[1].instructions[1].waits == (1,)


def test_counts_of_lines_become_counts_of_machine_instructions():
    blocks = sass.parse(TEXT)
    counts = sass.block_counts(blocks, RUNS)
    assert counts == [4, 40, 40, 0, 0]
    found = sass.class_counts(blocks, counts)
    assert found["shuffle"] == 40 and found["issue"] == 4 + 2 * 40 + 40


def test_copies_of_a_line_share_its_count():
    """A loop unrolled by two runs half as often."""
    turn = [Instruction("LDS.128", "", 7), Instruction("IMAD", "", 8)]
    blocks = [Block([*turn, *turn])]
    assert sass.block_counts(blocks, {7: 20, 8: 20}) == [10]
    assert sass.class_counts(blocks, [10])["shared"] == 20


def test_what_the_assembler_moved_does_not_count_for_its_block():
    """An address that is computed before the loop says nothing of how often the block runs."""
    blocks = [Block([Instruction("IMAD", "", 9), Instruction("STG.E", "", 3)])]
    assert sass.block_counts(blocks, {9: 1000, 3: 2}) == [2]


def clocks(*instructions):
    latency = sass.latency_of(H200.latency, "memory")
    return sass.chain([Block(list(instructions))], [1], latency)


def test_a_warp_waits_for_what_it_needs():
    load = Instruction("LDG.E", "", 1, sets=((0, True),))
    use = Instruction("FADD", "", 2, stall=4, waits=(0,))
    assert clocks(use) == 4
    assert clocks(load, use) == 600 + 4
    # Two loads at once take as long as one.
    other = Instruction("LDG.E", "", 1, sets=((1, True),))
    both = Instruction("FADD", "", 2, stall=4, waits=(0, 1))
    assert clocks(load, other, both) == 601 + 4
    near = sass.latency_of(H200.latency, "l2")
    assert sass.chain([Block([load, use])], [10], near) == 10 * 274


def test_a_loop_of_several_blocks_waits_across_them():
    """What one block asks for another one waits for, in the next turn too."""
    load = Block([Instruction("LDG.E", "", 1, sets=((5, True),))])
    aside = Block([Instruction("STG.E", "", 2)])
    use = Block([Instruction("FADD", "", 3, stall=4, waits=(5,))])
    latency = sass.latency_of(H200.latency, "memory")
    # In between what did not run.
    assert sass.chain([load, aside, use], [10, 0, 10], latency) == 10 * 604
    assert sass.chain([use, load], [10, 10], latency) == 10 * 604
    # Another loop has nothing on its way for this one.
    assert sass.chain([load, use], [10, 20], latency) == 10 * 1 + 20 * 4


def test_a_copy_asked_for_a_turn_before_is_there():
    copy = Instruction("LDGSTS.E.BYPASS.128", "[R1]", 1)
    close = Instruction("LDGDEPBAR", "", 2)
    work = [Instruction("FFMA", "", 3, stall=10)] * 70
    now = Instruction("DEPBAR.LE", "SB0, 0x0", 4)
    earlier = Instruction("DEPBAR.LE", "SB0, 0x1", 4)
    assert clocks(copy, close, now, *work) == pytest.approx(600 + 700, abs=5)
    assert clocks(copy, close, earlier, *work) == pytest.approx(700, abs=5)


def test_every_barrier_costs():
    assert clocks(*[Instruction("BAR.SYNC", "0x0", 1)] * 3) == 3 * (30 + 1)


def test_what_ptxas_says():
    said = "48 bytes stack frame, 40 bytes spill stores, 44 bytes spill loads\nUsed 168 registers"
    assert assembler.resources(said) == {"registers": 168, "stack": 48, "spills": 84}
    # 65536 registers over 128 threads of 168; 227 KB of shared memory over 100 KB.
    assert assembler.occupancy(90, 128, 168, 0) == 3
    assert assembler.occupancy(90, 128, 168, 100_000) == 2


def test_a_tool_that_is_not_there():
    with pytest.raises(RuntimeError, match="nothing: expected it among triton's files"):
        assembler.run_tool("nothing")
