//! What both the shim and the file server know about the host's files.

/// File systems that show the host's kernel, not files (statfs(2)), and where a file of one is, for a message.
const KERNEL_FILE_SYSTEMS: [(i64, &str); 12] = [
    (0x9fa0, "in the host's procfs"),
    (0x6265_6572, "in the host's sysfs"),
    (0x6367_7270, "in the host's cgroup file system"),
    (0x0027_e0eb, "in the host's cgroup file system"),
    (0x1cd1, "in the host's devpts"),
    (0x1980_0202, "in the host's message queues"),
    (0x6462_6720, "in the host's debugfs"),
    (0x7472_6163, "in the host's tracefs"),
    (0x7363_6673, "in the host's securityfs"),
    (0xcafe_4a11, "in the host's BPF file system"),
    (0x6265_6570, "in the host's configfs"),
    (0x9584_58f6, "of the host's huge pages"),
];

/// Where a file of the file system with this magic number is, if that shows the host's kernel: no guest gets such a file.
#[must_use]
pub fn kernel_file_system(magic: i64) -> Option<&'static str> {
    KERNEL_FILE_SYSTEMS
        .iter()
        .find(|(number, _)| *number == magic)
        .map(|(_, place)| *place)
}
