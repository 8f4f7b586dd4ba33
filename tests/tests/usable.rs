//! The computed sizes of blocks, compared with what the allocators themselves say of theirs.

use anyhow::{Context, Result, ensure};
use memtrace_common::addr::Avma;
use memtrace_tests::allocators;
use memtrace_tests::program::Program;
use memtrace_tests::recording::run;
use memtrace_userspace::pipeline::statistics::Allocator;
use memtrace_userspace::record::Alignment;

/// A block that the allocator has given.
struct Block {
    alignment: Alignment,
    size_bytes: u64,
    address: Avma,
    /// `malloc_usable_size` of it.
    usable_bytes: u64,
}

/// What `usable_sizes.c` says, linked with an allocator.
fn blocks(program: &Program) -> Result<Vec<Block>> {
    let executable = allocators::build(program)?;
    let finished = run(&mut std::process::Command::new(executable))?;
    let said = finished.require_success(program.name)?.stdout;
    let block = |line: &str| {
        let numbers: Vec<u64> =
            line.split(' ').map(str::parse).collect::<Result<_, _>>().context("its numbers")?;
        let [alignment, size_bytes, address, usable_bytes] = numbers[..] else {
            anyhow::bail!("four numbers and not `{line}`");
        };
        let log2 = if alignment == 0 { 0 } else { alignment.ilog2() as u8 };
        let alignment = Alignment::from_log2(log2).context("an alignment")?;
        Ok(Block { alignment, size_bytes, address: Avma(address), usable_bytes })
    };
    let blocks: Vec<Block> = said.lines().map(block).collect::<Result<_>>()?;
    ensure!(blocks.len() > 30_000, "{} says {} blocks", program.name, blocks.len());
    Ok(blocks)
}

impl Block {
    fn computed(&self, allocator: Allocator) -> Option<u64> {
        allocator.usable_bytes(self.address, self.size_bytes, self.alignment)
    }

    fn describe(&self) -> String {
        format!("{} bytes aligned to {}", self.size_bytes, self.alignment.bytes())
    }
}

fn every_block_is_as_computed(program: &Program, allocator: Allocator) -> Result<()> {
    for block in blocks(program)? {
        let computed = block.computed(allocator);
        let real = block.usable_bytes;
        ensure!(computed == Some(real), "{}: {computed:?}, not {real}", block.describe());
    }
    Ok(())
}

#[test]
fn jemalloc_blocks_are_as_large_as_jemalloc_says() -> Result<()> {
    every_block_is_as_computed(&allocators::USABLE_JEMALLOC, Allocator::Jemalloc)
}

#[test]
fn tcmalloc_blocks_are_as_large_as_tcmalloc_says() -> Result<()> {
    every_block_is_as_computed(&allocators::USABLE_TCMALLOC, Allocator::Tcmalloc)
}

#[test]
fn musl_blocks_are_as_large_as_musl_says() -> Result<()> {
    every_block_is_as_computed(&allocators::USABLE_MUSL, Allocator::Musl)
}

#[test]
fn mimalloc_blocks_are_as_large_as_mimalloc_says_or_unknown() -> Result<()> {
    for block in blocks(&allocators::USABLE_MIMALLOC)? {
        let real = block.usable_bytes;
        let expected = (block.alignment == Alignment::NONE).then_some(real);
        let computed = block.computed(Allocator::Mimalloc);
        ensure!(computed == expected, "{}: {computed:?}, not {real}", block.describe());
    }
    Ok(())
}

#[test]
fn glibc_blocks_are_as_large_as_glibc_says() -> Result<()> {
    let (mut plain, mut aligned, mut larger) = (0, 0, [0, 0]);
    for block in blocks(&allocators::USABLE_GLIBC)? {
        let is_aligned = block.alignment != Alignment::NONE;
        // Where what is left of a free chunk is too small to be one, the block gets it too; at
        // either end, if it was cut to be aligned.
        let more: &[u64] = if is_aligned { &[0, 16, 32] } else { &[0, 16] };
        let computed = block.computed(Allocator::Glibc).context("glibc's are computed")?;
        let real = block.usable_bytes;
        let is_as_computed = more.contains(&real.wrapping_sub(computed));
        ensure!(is_as_computed, "{}: {computed}, not {real}", block.describe());
        larger[usize::from(is_aligned)] += u64::from(real > computed);
        *(if is_aligned { &mut aligned } else { &mut plain }) += 1;
    }
    ensure!(
        larger[0] * 8 < plain && larger[1] * 8 < aligned,
        "{larger:?} are larger than computed"
    );
    Ok(())
}
