//! A loop device for a file, which the kernel frees with its last user (loop(4)).
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::errno::Errno;

nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
nix::ioctl_write_int_bad!(loop_set_fd, 0x4C00);
nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
nix::ioctl_write_ptr_bad!(loop_set_status64, 0x4C04, LoopInfo64);

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Other processes ask for free devices too.
const TRIES: usize = 64;

/// include/uapi/linux/loop.h, struct loop_info64.
#[repr(C)]
pub struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// Attaches `file` read-only. The device goes when it is unmounted and the returned file is closed.
pub fn attach(file: &File) -> std::io::Result<(PathBuf, File)> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
        let number = unsafe { loop_ctl_get_free(control.as_raw_fd()) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::open(&path)?;
        // SAFETY: LOOP_SET_FD takes a descriptor, which is open for the length of the call.
        match unsafe { loop_set_fd(device.as_raw_fd(), file.as_raw_fd()) } {
            Ok(_) => {}
            Err(Errno::EBUSY) => continue,
            Err(e) => return Err(e.into()),
        }
        let info = LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        };
        // SAFETY: the structure is the kernel's (repr(C)), initialised, and outlives the call.
        match unsafe { loop_set_status64(device.as_raw_fd(), &info) } {
            Ok(_) => return Ok((path, device)),
            Err(e) => {
                // SAFETY: LOOP_CLR_FD takes no argument; the device is the one attached above.
                let _ = unsafe { loop_clr_fd(device.as_raw_fd()) };
                return Err(e.into());
            }
        }
    }
    Err(std::io::Error::other("every free loop device was taken by somebody else"))
}
