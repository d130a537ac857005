"""Runs a guest of four instructions on /dev/kvm, as proof that it works: the guest adds and answers on a port."""

import ctypes
import fcntl
import mmap
import os
import struct

KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_EXIT_IO, KVM_EXIT_HLT = 2, 5

kvm = os.open("/dev/kvm", os.O_RDWR)
assert fcntl.ioctl(kvm, KVM_GET_API_VERSION) == 12
vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)

# mov dx, 0x3f8; add al, bl; out dx, al; hlt
memory = mmap.mmap(-1, 4096)
memory.write(b"\xba\xf8\x03\x00\xd8\xee\xf4")
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("IIQQQ", 0, 0, 0x1000, 4096, address))

vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
run = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE))
sregs = bytearray(312)
fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs)
struct.pack_into("Q", sregs, 0, 0)  # cs.base
struct.pack_into("H", sregs, 12, 0)  # cs.selector
fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(sregs))
# rax, rbx, then fourteen more, rip, rflags
fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("18Q", 40, 2, *[0] * 14, 0x1000, 2))

fcntl.ioctl(vcpu, KVM_RUN, 0)
assert struct.unpack_from("I", run, 8)[0] == KVM_EXIT_IO
answer = run[struct.unpack_from("Q", run, 40)[0]]
fcntl.ioctl(vcpu, KVM_RUN, 0)
assert struct.unpack_from("I", run, 8)[0] == KVM_EXIT_HLT
print(answer)
