//! Compiles filters, for build scripts.

use std::{error::Error, fmt::Write, fs, path::Path};

use seccompiler::{BpfProgram, TargetArch, compile_from_json};

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

/// Turns `filters`, a file as seccompiler's JSON has it, into a Rust source file `output` with a constant of type
/// `sealock_jail::filter::Filter` for each, named as the filter is.
///
/// # Errors
/// A file can't be read or written, or makes no sense.
pub fn compile(filters: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", filters.display());
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH")?;
    let architecture = TargetArch::try_from(architecture.as_str())?;
    let mut programs: Vec<(String, BpfProgram)> = compile_from_json(fs::File::open(filters)?, architecture)?
        .into_iter()
        .collect();
    programs.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut source = String::new();
    for (name, program) in programs {
        let mut instructions = vec![
            // The call's number is the first word of what the filter sees.
            (LOAD_WORD, 0, 0, 0),
            (JUMP_IF_EQUAL, 0, 1, CLONE3),
            (RETURN, 0, 0, RET_ERRNO | NO_SUCH_CALL),
        ];
        instructions.extend(program.iter().map(|one| (one.code, one.jt, one.jf, one.k)));
        let constant = name.to_uppercase();
        writeln!(source, "/// The filter `{name}`.")?;
        writeln!(source, "pub const {constant}: sealock_jail::filter::Filter = {{")?;
        writeln!(
            source,
            "    static PROGRAM: &[sealock_jail::filter::Instruction] = &["
        )?;
        for (code, jt, jf, k) in instructions {
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
