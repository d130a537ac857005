//! `linux.seccomp`, compiled to the filter that the container's processes load.
//!
//! libseccomp writes the filter. Like other runtimes Sealock puts a few instructions before it, by which system calls that
//! are newer than everything the profile speaks of do not exist (`ENOSYS`): programs then use an older one, instead of
//! failing for want of a permission that nobody meant to withhold.

use std::{collections::BTreeMap, os::fd::AsFd};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// A filter ready to be loaded (seccomp(2), `SECCOMP_SET_MODE_FILTER`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    /// `SECCOMP_FILTER_FLAG_*`
    pub flags: u32,
    /// `struct sock_filter`s, as numbers.
    pub program: Vec<u64>,
}

/// The most instructions of a filter (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// What the system calls of a profile are matched against: a bound for the work of compiling it.
const MAX_RULES: usize = 20_000;

/// The largest error number that a system call can return (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

const SPEC_ALLOW: u32 = 4;

/// A profile's flags; those of the last are about notifications, which are refused, and change nothing without them.
const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 0),
];

const ARCHITECTURES: [(&str, ScmpArch); 21] = [
    ("SCMP_ARCH_X86", ScmpArch::X86),
    ("SCMP_ARCH_X86_64", ScmpArch::X8664),
    ("SCMP_ARCH_X32", ScmpArch::X32),
    ("SCMP_ARCH_ARM", ScmpArch::Arm),
    ("SCMP_ARCH_AARCH64", ScmpArch::Aarch64),
    ("SCMP_ARCH_LOONGARCH64", ScmpArch::Loongarch64),
    ("SCMP_ARCH_M68K", ScmpArch::M68k),
    ("SCMP_ARCH_MIPS", ScmpArch::Mips),
    ("SCMP_ARCH_MIPS64", ScmpArch::Mips64),
    ("SCMP_ARCH_MIPS64N32", ScmpArch::Mips64N32),
    ("SCMP_ARCH_MIPSEL", ScmpArch::Mipsel),
    ("SCMP_ARCH_MIPSEL64", ScmpArch::Mipsel64),
    ("SCMP_ARCH_MIPSEL64N32", ScmpArch::Mipsel64N32),
    ("SCMP_ARCH_PPC", ScmpArch::Ppc),
    ("SCMP_ARCH_PPC64", ScmpArch::Ppc64),
    ("SCMP_ARCH_PPC64LE", ScmpArch::Ppc64Le),
    ("SCMP_ARCH_S390", ScmpArch::S390),
    ("SCMP_ARCH_S390X", ScmpArch::S390X),
    ("SCMP_ARCH_PARISC", ScmpArch::Parisc),
    ("SCMP_ARCH_PARISC64", ScmpArch::Parisc64),
    ("SCMP_ARCH_RISCV64", ScmpArch::Riscv64),
];

/// Architectures of programs that the guest can run, with their numbers in `struct seccomp_data` (`AUDIT_ARCH_*`): for those
/// the instructions before the filter are made.
#[cfg(target_arch = "x86_64")]
const RUNNABLE: [(ScmpArch, u32); 2] = [(ScmpArch::X8664, 0xc000_003e), (ScmpArch::X86, 0x4000_0003)];
#[cfg(target_arch = "aarch64")]
const RUNNABLE: [(ScmpArch, u32); 2] = [(ScmpArch::Aarch64, 0xc000_00b7), (ScmpArch::Arm, 0x4000_0028)];

impl Seccomp {
    /// Reads and compiles `linux.seccomp`.
    ///
    /// # Errors
    /// The field that can't be applied. A profile that is broken in any part is refused as a whole.
    pub fn parse(linux: &mut Object) -> Result<Option<Self>, SpecError> {
        let Some(mut seccomp) = linux.object("seccomp")? else {
            return Ok(None);
        };
        let compiled = Profile::parse(&mut seccomp)?.compile(seccomp.path())?;
        seccomp.finish()?;
        Ok(Some(compiled))
    }
}

#[derive(Debug)]
struct Profile {
    default: ScmpAction,
    architectures: Vec<(String, ScmpArch)>,
    flags: u32,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    field: String,
    names: Vec<String>,
    action: ScmpAction,
    arguments: Vec<Argument>,
}

#[derive(Clone, Copy, Debug)]
struct Argument {
    index: u32,
    compare: ScmpArgCompare,
}

impl Profile {
    fn parse(seccomp: &mut Object) -> Result<Self, SpecError> {
        let default = action(seccomp, "defaultAction", "defaultErrnoRet")?;
        let mut flags = 0;
        // As without a profile: the processor may speculate over stores, which programs are faster for.
        let given: Option<Vec<String>> = seccomp.take("flags")?;
        for (index, name) in given.as_deref().unwrap_or_default().iter().enumerate() {
            flags |= look_up(&FLAGS, name).ok_or_else(|| {
                SpecError::invalid(
                    format!("{}[{index}]", seccomp.field("flags")),
                    format!("no such flag: {name:?}"),
                )
            })?;
        }
        if given.is_none() {
            flags = SPEC_ALLOW;
        }
        let mut architectures = Vec::new();
        for (index, name) in seccomp.take_texts("architectures")?.iter().enumerate() {
            let field = format!("{}[{index}]", seccomp.field("architectures"));
            let architecture = look_up(&ARCHITECTURES, name)
                .ok_or_else(|| SpecError::invalid(&field, format!("no such architecture: {name:?}")))?;
            architectures.push((field, architecture));
        }
        let mut rules = Vec::new();
        let mut count = 0;
        for item in seccomp.objects("syscalls")? {
            let rule = Rule::parse(item)?;
            count += rule.names.len() * rule.arguments.len().max(1);
            rules.push(rule);
        }
        if count > MAX_RULES {
            return Err(SpecError::invalid(
                seccomp.field("syscalls"),
                format!("more than {MAX_RULES} rules"),
            ));
        }
        Ok(Self {
            default,
            architectures,
            flags,
            rules,
        })
    }

    fn compile(&self, field: &str) -> Result<Seccomp, SpecError> {
        let refuse = |field: &str, error: libseccomp::error::SeccompError| {
            SpecError::invalid(field, format!("libseccomp: {error}"))
        };
        let mut filter = ScmpFilterContext::new(self.default)
            .map_err(|error| refuse(&format!("{field}.defaultAction"), error))?;
        for (place, architecture) in &self.architectures {
            filter
                .add_arch(*architecture)
                .map_err(|error| refuse(place, error))?;
        }
        // The process itself decides about new privileges.
        filter.set_ctl_nnp(false).map_err(|error| refuse(field, error))?;
        // A binary tree over the numbers. Older libraries have linear filters only, which do the same.
        let _ = filter.set_ctl_optimize(2);
        let mut newest = Newest::default();
        for rule in &self.rules {
            for name in &rule.names {
                newest.note(name);
                // A name that is unknown here is of a system call that does not exist here.
                let Ok(number) = ScmpSyscall::from_name(name) else {
                    continue;
                };
                // It would say what is so anyway.
                if rule.action == self.default {
                    continue;
                }
                rule.add(&mut filter, number)
                    .map_err(|error| refuse(&format!("{}: {name}", rule.field), error))?;
            }
        }
        let mut program = match self.default {
            ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_) => Vec::new(),
            ScmpAction::Errno(libc::ENOSYS) => Vec::new(),
            _ => newest.instructions(|architecture| filter.is_arch_present(architecture).unwrap_or(false)),
        };
        program.extend(export(&filter).map_err(|reason| SpecError::invalid(field, reason))?);
        if program.len() > MAX_INSTRUCTIONS {
            return Err(SpecError::invalid(
                field,
                format!(
                    "the filter has {} instructions, the kernel takes {MAX_INSTRUCTIONS}",
                    program.len()
                ),
            ));
        }
        Ok(Seccomp {
            flags: self.flags,
            program,
        })
    }
}

impl Rule {
    fn parse(mut item: Object) -> Result<Self, SpecError> {
        let names = item.take_texts("names")?;
        if names.is_empty() {
            return Err(SpecError::invalid(item.field("names"), "names no system call"));
        }
        let action = action(&mut item, "action", "errnoRet")?;
        let arguments = item
            .objects("args")?
            .into_iter()
            .map(Argument::parse)
            .collect::<Result<_, _>>()?;
        let field = item.path().to_owned();
        item.finish()?;
        Ok(Self {
            field,
            names,
            action,
            arguments,
        })
    }

    /// Conditions on different arguments must all hold; of several on one argument any is enough, and then of all.
    fn add(
        &self,
        filter: &mut ScmpFilterContext,
        number: ScmpSyscall,
    ) -> Result<(), libseccomp::error::SeccompError> {
        if self.arguments.is_empty() {
            filter.add_rule(self.action, number)?;
            return Ok(());
        }
        let repeated = self.arguments.iter().enumerate().any(|(at, argument)| {
            self.arguments[..at]
                .iter()
                .any(|other| other.index == argument.index)
        });
        let all: Vec<ScmpArgCompare> = self.arguments.iter().map(|argument| argument.compare).collect();
        let conditions: Vec<&[ScmpArgCompare]> = if repeated {
            all.chunks(1).collect()
        } else {
            vec![&all]
        };
        for condition in conditions {
            filter.add_rule_conditional(self.action, number, condition)?;
        }
        Ok(())
    }
}

impl Argument {
    fn parse(mut item: Object) -> Result<Self, SpecError> {
        let index: u32 = item.take_or_default("index")?;
        if index > 5 {
            return Err(SpecError::invalid(
                item.field("index"),
                "is not between 0 and 5: system calls have six arguments",
            ));
        }
        let value: u64 = item.take_or_default("value")?;
        let second: u64 = item.take_or_default("valueTwo")?;
        let name = item.take_text("op")?.unwrap_or_default();
        let (op, datum) = match name.as_str() {
            "SCMP_CMP_NE" => (ScmpCompareOp::NotEqual, value),
            "SCMP_CMP_LT" => (ScmpCompareOp::Less, value),
            "SCMP_CMP_LE" => (ScmpCompareOp::LessOrEqual, value),
            "SCMP_CMP_EQ" => (ScmpCompareOp::Equal, value),
            "SCMP_CMP_GE" => (ScmpCompareOp::GreaterEqual, value),
            "SCMP_CMP_GT" => (ScmpCompareOp::Greater, value),
            "SCMP_CMP_MASKED_EQ" => (ScmpCompareOp::MaskedEqual(value), second),
            _ => {
                return Err(SpecError::invalid(
                    item.field("op"),
                    format!("no such operator: {name:?}"),
                ));
            }
        };
        item.finish()?;
        Ok(Self {
            index,
            compare: ScmpArgCompare::new(index, op, datum),
        })
    }
}

fn action(object: &mut Object, name: &str, number: &str) -> Result<ScmpAction, SpecError> {
    let field = object.field(name);
    let text = object.take_text(name)?.unwrap_or_default();
    let value: Option<u32> = object.take(number)?;
    let answer = value.unwrap_or(libc::EPERM.unsigned_abs());
    let action = match text.as_str() {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_ERRNO" => {
            let answer = i32::try_from(answer)
                .ok()
                .filter(|_| answer <= MAX_ERRNO)
                .ok_or_else(|| {
                    SpecError::invalid(object.field(number), format!("is not between 0 and {MAX_ERRNO}"))
                })?;
            return Ok(ScmpAction::Errno(answer));
        }
        "SCMP_ACT_TRACE" => {
            return u16::try_from(answer)
                .map(ScmpAction::Trace)
                .map_err(|_| SpecError::invalid(object.field(number), "is not between 0 and 65535"));
        }
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        "SCMP_ACT_LOG" => ScmpAction::Log,
        "SCMP_ACT_NOTIFY" => {
            return Err(SpecError::refused(
                field,
                "SCMP_ACT_NOTIFY is not supported: the listener would be on the host, the process is in the guest",
            ));
        }
        _ => return Err(SpecError::invalid(field, format!("no such action: {text:?}"))),
    };
    // Profiles for several runtimes may give a number to any action: it means nothing to those that return none.
    Ok(action)
}

fn look_up<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| *value)
}

/// The filter's instructions. The library writes them to a file.
fn export(filter: &ScmpFilterContext) -> Result<Vec<u64>, String> {
    use std::{fs::File, io::Read, io::Seek};
    let file = nix::sys::memfd::memfd_create(c"filter", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map_err(|error| format!("making a file for the filter: {error}"))?;
    let mut file = File::from(file);
    filter
        .export_bpf(file.as_fd())
        .map_err(|error| format!("libseccomp: {error}"))?;
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(|error| format!("reading the filter: {error}"))?;
    let (instructions, rest) = bytes.as_chunks::<8>();
    if instructions.is_empty() || !rest.is_empty() {
        return Err("libseccomp has written no filter".to_owned());
    }
    Ok(instructions.iter().map(|one| u64::from_ne_bytes(*one)).collect())
}

/// The newest system call of a profile, for each architecture that the guest runs: their numbers only grow.
#[derive(Debug, Default)]
struct Newest(BTreeMap<u32, u32>);

/// System calls of the x32 ABI have this bit in their number on x86-64; the library's part decides about them.
const X32_BIT: u32 = 0x4000_0000;

const LOAD_NUMBER: u64 = instruction(0x20, 0, 0, 0);
const LOAD_ARCHITECTURE: u64 = instruction(0x20, 0, 0, 4);

const fn instruction(code: u16, if_true: u8, if_false: u8, value: u32) -> u64 {
    // `struct sock_filter` { code: u16, jt: u8, jf: u8, k: u32 } in memory.
    let [c0, c1] = code.to_ne_bytes();
    let [k0, k1, k2, k3] = value.to_ne_bytes();
    u64::from_ne_bytes([c0, c1, if_true, if_false, k0, k1, k2, k3])
}

impl Newest {
    fn note(&mut self, name: &str) {
        for (architecture, audit) in RUNNABLE {
            let number = ScmpSyscall::from_name_by_arch(name, architecture).map(i32::from);
            // Negative ones are the library's own, for what the architecture does in another way.
            if let Ok(Ok(number)) = number.map(u32::try_from) {
                let newest = self.0.entry(audit).or_insert(number);
                *newest = number.max(*newest);
            }
        }
    }

    fn instructions(&self, present: impl Fn(ScmpArch) -> bool) -> Vec<u64> {
        const JUMP_EQUAL: u16 = 0x15;
        const JUMP_GREATER: u16 = 0x25;
        const JUMP_GREATER_EQUAL: u16 = 0x35;
        const RETURN: u16 = 0x06;
        let no_such_call = 0x0005_0000 | libc::ENOSYS.unsigned_abs();
        let mut program = Vec::new();
        for (architecture, audit) in RUNNABLE {
            let Some(newest) = self.0.get(&audit).filter(|_| present(architecture)) else {
                continue;
            };
            program.extend([
                LOAD_ARCHITECTURE,
                instruction(JUMP_EQUAL, 0, 4, audit),
                LOAD_NUMBER,
                instruction(JUMP_GREATER_EQUAL, 2, 0, X32_BIT),
                instruction(JUMP_GREATER, 0, 1, *newest),
                instruction(RETURN, 0, 0, no_such_call),
            ]);
        }
        program
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(seccomp: &str) -> Result<Seccomp, SpecError> {
        let text = format!(r#"{{"linux":{{"seccomp":{seccomp}}}}}"#);
        let mut spec = Object::parse(text.as_bytes()).unwrap();
        Seccomp::parse(&mut spec.object("linux").unwrap().unwrap()).map(Option::unwrap)
    }

    /// What a filter answers to a system call of a 64-bit program, run as the kernel would.
    fn answer(filter: &Seccomp, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(RUNNABLE[0].1.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        for argument in arguments {
            data.extend(argument.to_ne_bytes());
        }
        let (mut at, mut a) = (0, 0);
        loop {
            let bytes = filter.program[at].to_ne_bytes();
            let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
            let value = u32::from_ne_bytes(bytes[4..].try_into().unwrap());
            at += 1;
            let holds = match code {
                0x20 => {
                    let place = value as usize;
                    a = u32::from_ne_bytes(data[place..place + 4].try_into().unwrap());
                    continue;
                }
                0x54 => {
                    a &= value;
                    continue;
                }
                0x05 => {
                    at += value as usize;
                    continue;
                }
                0x06 => return value,
                0x15 => a == value,
                0x25 => a > value,
                0x35 => a >= value,
                other => panic!("no such instruction here: {other:#x}"),
            };
            at += usize::from(if holds { bytes[2] } else { bytes[3] });
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    fn nr(number: libc::c_long) -> u32 {
        u32::try_from(number).unwrap()
    }

    #[test]
    fn a_list_of_allowed_calls_allows_no_other_and_hides_newer_ones() {
        let filter = parse(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
                "syscalls":[{"names":["read","openat2","no_such_call_anywhere"],"action":"SCMP_ACT_ALLOW"},
                            {"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#,
        )
        .unwrap();
        assert_eq!(answer(&filter, nr(libc::SYS_read), [0; 6]), ALLOW);
        assert_eq!(answer(&filter, nr(libc::SYS_openat2), [0; 6]), ALLOW);
        assert_eq!(answer(&filter, nr(libc::SYS_write), [0; 6]), ERRNO | 1);
        assert_eq!(answer(&filter, nr(libc::SYS_chmod), [0; 6]), ERRNO | 38);
        assert_eq!(answer(&filter, nr(libc::SYS_openat2) + 5, [0; 6]), ERRNO | 38);
        assert_eq!(filter.flags, SPEC_ALLOW);
    }

    #[test]
    fn a_default_of_enosys_or_of_allowing_needs_nothing_before_it() {
        for default in [r#""SCMP_ACT_ERRNO","defaultErrnoRet":38"#, r#""SCMP_ACT_ALLOW""#] {
            let filter = parse(&format!(
                r#"{{"defaultAction":{default},"flags":[],"syscalls":[{{"names":["read"],"action":"SCMP_ACT_KILL_PROCESS"}}]}}"#
            ))
            .unwrap();
            assert_eq!(filter.program[0], LOAD_ARCHITECTURE);
            assert_ne!(filter.program[2], instruction(0x35, 2, 0, X32_BIT));
            assert_eq!(answer(&filter, nr(libc::SYS_read), [0; 6]), 0x8000_0000);
            assert_eq!(filter.flags, 0);
        }
    }

    #[test]
    fn every_operator_compares() {
        for (op, value, second, yes, no) in [
            ("NE", 5, 0, 6, 5),
            ("LT", 5, 0, 4, 5),
            ("LE", 5, 0, 5, 6),
            ("EQ", 5, 0, 5, 4),
            ("GE", 5, 0, 5, 4),
            ("GT", 5, 0, 6, 5),
            ("MASKED_EQ", 0xf0, 0x20, 0x2f, 0x1f),
        ] {
            let filter = parse(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["socket"],"action":"SCMP_ACT_TRACE","errnoRet":9,
                    "args":[{{"index":1,"value":{value},"valueTwo":{second},"op":"SCMP_CMP_{op}"}}]}}]}}"#
            ))
            .unwrap();
            let call = |argument| answer(&filter, nr(libc::SYS_socket), [0, argument, 0, 0, 0, 0]);
            assert_eq!(call(yes), 0x7ff0_0009, "{op}");
            assert_eq!(call(no), ALLOW, "{op}");
        }
    }

    #[test]
    fn conditions_on_one_argument_are_alternatives_and_on_several_are_not() {
        let rule = |second: u32| {
            parse(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["personality","socket"],"action":"SCMP_ACT_ALLOW",
                    "args":[{{"index":0,"value":1,"op":"SCMP_CMP_EQ"}},{{"index":{second},"value":2,"op":"SCMP_CMP_EQ"}}]}}]}}"#
            ))
            .unwrap()
        };
        let call = |filter: &Seccomp, one, two| answer(filter, nr(libc::SYS_socket), [one, two, 0, 0, 0, 0]);
        let either = rule(0);
        assert_eq!(call(&either, 1, 0), ALLOW);
        assert_eq!(call(&either, 2, 0), ALLOW);
        let both = rule(1);
        assert_eq!(call(&both, 1, 0), ERRNO | 1);
        assert_eq!(call(&both, 1, 2), ALLOW);
    }

    #[test]
    fn broken_profiles_are_refused_by_the_field() {
        for (seccomp, message) in [
            ("{}", r#"linux.seccomp.defaultAction: no such action: """#),
            (
                r#"{"defaultAction":"SCMP_ACT_DANCE"}"#,
                r#"linux.seccomp.defaultAction: no such action: "SCMP_ACT_DANCE""#,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_VAX"]}"#,
                r#"linux.seccomp.architectures[0]: no such architecture: "SCMP_ARCH_VAX""#,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["X"]}"#,
                r#"linux.seccomp.flags[0]: no such flag: "X""#,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_LOG"}]}"#,
                "linux.seccomp.syscalls[0].names: names no system call",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":4096}]}"#,
                "linux.seccomp.syscalls[0].errnoRet: is not between 0 and 4095",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}"#,
                "linux.seccomp.syscalls[0].args[0].index: is not between 0 and 5: system calls have six arguments",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"op":"=="}]}]}"#,
                r#"linux.seccomp.syscalls[0].args[0].op: no such operator: "==""#,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x"}"#,
                "linux.seccomp.listenerPath is not supported",
            ),
        ] {
            assert_eq!(parse(seccomp).unwrap_err().to_string(), message);
        }
        let notify = parse(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        );
        let notify = notify.unwrap_err().to_string();
        assert!(
            notify.starts_with("linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY"),
            "{notify}"
        );
    }
}
