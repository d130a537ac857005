//! Compiles filters, for build scripts.

use std::{collections::BTreeMap, error::Error, fmt::Write, fs, io::Read, path::Path};

use seccompiler::{BpfProgram, TargetArch, compile_from_json};

use crate::filter::Instruction;

/// `clone3`, of which no argument can be looked at, for they are in memory. The C library goes on to `clone` when it is told
/// that there is none, and that one's flags are an argument.
const CLONE3: u32 = 435;

/// BPF (linux/bpf_common.h, linux/seccomp.h).
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const RET_ERRNO: u32 = 0x0005_0000;
/// `ENOSYS`
const NO_SUCH_CALL: u32 = 38;

/// Compiles filters, as seccompiler's JSON has them, by their names.
///
/// # Errors
/// They can't be read, or make no sense.
pub fn programs(
    filters: impl Read,
    architecture: &str,
) -> Result<BTreeMap<String, Vec<Instruction>>, Box<dyn Error>> {
    let compiled = compile_from_json(filters, TargetArch::try_from(architecture)?)?;
    let with_prefix = |program: BpfProgram| {
        let instruction = |code, jt, jf, k| Instruction { code, jt, jf, k };
        let prefix = [
            // The call's number is the first word of what the filter sees.
            instruction(LOAD_WORD, 0, 0, 0),
            instruction(JUMP_IF_EQUAL, 0, 1, CLONE3),
            instruction(RETURN, 0, 0, RET_ERRNO | NO_SUCH_CALL),
        ];
        let rest = program
            .into_iter()
            .map(|one| instruction(one.code, one.jt, one.jf, one.k));
        prefix.into_iter().chain(rest).collect()
    };
    Ok(compiled
        .into_iter()
        .map(|(name, program)| (name, with_prefix(program)))
        .collect())
}

/// Turns `filters`, a file, into a Rust source file `output` with a constant of type `sealock_jail::filter::Filter` for each, named
/// as the filter is.
///
/// # Errors
/// A file can't be read or written, or makes no sense.
pub fn compile(filters: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", filters.display());
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    let mut source = String::new();
    for (name, program) in programs(fs::File::open(filters)?, &architecture)? {
        let constant = name.to_uppercase();
        writeln!(source, "/// The filter `{name}`.")?;
        writeln!(source, "pub const {constant}: sealock_jail::filter::Filter = {{")?;
        writeln!(
            source,
            "    static PROGRAM: &[sealock_jail::filter::Instruction] = &["
        )?;
        for Instruction { code, jt, jf, k } in program {
            writeln!(
                source,
                "        sealock_jail::filter::Instruction {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},"
            )?;
        }
        writeln!(
            source,
            "    ];\n    sealock_jail::filter::Filter::new(PROGRAM)\n}};"
        )?;
    }
    fs::write(output, source)?;
    Ok(())
}
