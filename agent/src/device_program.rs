//! Device rules, compiled to the BPF program that is the device controller of cgroup v2 (`BPF_PROG_TYPE_CGROUP_DEVICE`).
//!
//! The program is called with a `struct bpf_cgroup_dev_ctx` { access_type, major, minor } and returns whether the access is
//! allowed. It goes through the rules from the last to the first with the set of accesses not yet decided on: an allowing
//! rule takes its accesses out of the set, and the answer is yes when none is left; a denying rule that speaks of one that
//! is left is a no; and so is the end.

use std::{io, os::fd::BorrowedFd};

use crate::{
    linux::bpf::{self, Instruction},
    oci::device_cgroup::DeviceRule,
};

/// Refuses whatever the rules refuse, to all processes of a cgroup for as long as it exists.
///
/// # Errors
/// The kernel takes no such program.
pub fn attach(rules: &[DeviceRule], cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let program = bpf::load_device_program(&compile(rules))?;
    bpf::attach_device_program(&program, cgroup)
}

const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn compile(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        // access_type is the access in its upper half and the kind of device in its lower one.
        Instruction::load32(KIND, CONTEXT, 0),
        Instruction::copy32(ACCESS, KIND),
        Instruction::and32(KIND, 0xffff),
        Instruction::shift_right32(ACCESS, 16),
        Instruction::load32(MAJOR, CONTEXT, 4),
        Instruction::load32(MINOR, CONTEXT, 8),
    ];
    for rule in rules.iter().rev() {
        let verdict = verdict(rule);
        let conditions = [
            (KIND, rule.kind.map(|kind| kind as u32)),
            (MAJOR, rule.major),
            (MINOR, rule.minor),
        ];
        let conditions: Vec<(u8, u32)> = conditions
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)))
            .collect();
        let mut remaining = conditions.len();
        for (register, value) in conditions {
            remaining -= 1;
            // At most two conditions and four instructions of a verdict are jumped over.
            let distance = i16::try_from(remaining + verdict.len()).expect("a rule is short");
            program.push(Instruction::jump_not_equal32(register, value, distance));
        }
        program.extend(verdict);
    }
    program.extend([Instruction::set32(ANSWER, 0), Instruction::exit()]);
    program
}

fn verdict(rule: &DeviceRule) -> Vec<Instruction> {
    if rule.allow {
        vec![
            Instruction::and32(ACCESS, !rule.access),
            Instruction::jump_not_equal32(ACCESS, 0, 2),
            Instruction::set32(ANSWER, 1),
            Instruction::exit(),
        ]
    } else {
        vec![
            Instruction::jump_any_set32(ACCESS, rule.access, 1),
            Instruction::jump(2),
            Instruction::set32(ANSWER, 0),
            Instruction::exit(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{
        device_cgroup::{MKNOD, READ, RuleKind, WRITE},
        object::Object,
    };

    const ALL: u32 = READ | WRITE | MKNOD;

    fn program(rules: &str) -> Vec<Instruction> {
        let mut resources = Object::parse(format!(r#"{{"devices":{rules}}}"#).as_bytes()).unwrap();
        compile(&DeviceRule::parse_all(Some(&mut resources)).unwrap())
    }

    /// Runs a program as the kernel would, as far as programs made here go.
    fn allows(program: &[Instruction], kind: RuleKind, major: u32, minor: u32, access: u32) -> bool {
        let context = [access << 16 | kind as u32, major, minor];
        let mut registers = [0u32; 11];
        let mut at = 0usize;
        for _ in 0..program.len() {
            let Instruction {
                code,
                registers: pair,
                offset,
                immediate,
            } = program[at];
            let (to, from) = (usize::from(pair & 0xf), usize::from(pair >> 4));
            let immediate = immediate as u32;
            let mut jump = false;
            match code {
                0x61 => {
                    assert_eq!(from, usize::from(CONTEXT));
                    registers[to] = context[usize::try_from(offset).unwrap() / 4];
                }
                0xbc => registers[to] = registers[from],
                0xb4 => registers[to] = immediate,
                0x54 => registers[to] &= immediate,
                0x74 => registers[to] >>= immediate,
                0x56 => jump = registers[to] != immediate,
                0x46 => jump = registers[to] & immediate != 0,
                0x05 => jump = true,
                0x95 => return registers[0] == 1,
                other => panic!("no such instruction here: {other:#x}"),
            }
            at += 1;
            if jump {
                at = at.checked_add_signed(isize::from(offset)).unwrap();
            }
        }
        panic!("the program does not end");
    }

    #[test]
    fn the_default_devices_are_allowed_even_when_all_is_denied() {
        let program = program(r#"[{"allow":false,"access":"rwm"}]"#);
        assert!(allows(&program, RuleKind::Character, 1, 3, ALL));
        assert!(allows(&program, RuleKind::Character, 136, 7, READ | WRITE));
        assert!(!allows(&program, RuleKind::Block, 8, 0, READ));
        assert!(!allows(&program, RuleKind::Block, 1, 3, READ));
        assert!(allows(&program, RuleKind::Block, 8, 0, MKNOD));
    }

    #[test]
    fn what_no_rule_speaks_of_is_denied() {
        assert!(!allows(&program("[]"), RuleKind::Character, 10, 200, READ));
    }

    #[test]
    fn the_last_rule_that_matches_wins() {
        let program = program(
            r#"[{"allow":false},
                {"allow":true,"type":"c","major":10,"access":"rw"},
                {"allow":false,"type":"c","major":10,"minor":200,"access":"w"}]"#,
        );
        assert!(allows(&program, RuleKind::Character, 10, 1, READ | WRITE));
        assert!(allows(&program, RuleKind::Character, 10, 200, READ));
        assert!(!allows(&program, RuleKind::Character, 10, 200, READ | WRITE));
        assert!(!allows(&program, RuleKind::Character, 10, 200, WRITE));
    }

    #[test]
    fn an_access_is_allowed_when_several_rules_allow_its_parts() {
        let program = program(
            r#"[{"allow":true,"type":"b","major":8,"access":"r"},{"allow":true,"type":"b","access":"w"}]"#,
        );
        assert!(allows(&program, RuleKind::Block, 8, 0, READ | WRITE));
        assert!(!allows(&program, RuleKind::Block, 9, 0, READ | WRITE));
    }

    #[test]
    fn a_privileged_container_may_use_everything() {
        let program = program(r#"[{"allow":true,"access":"rwm"}]"#);
        assert!(allows(&program, RuleKind::Block, 0xfff, 0xf_ffff, ALL));
    }
}
