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
nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);

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

/// include/uapi/linux/loop.h, struct loop_config.
#[repr(C)]
pub struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// Attaches in one step (Linux 5.8), so that no process can die between the file and the flag that frees
/// the device; before that, in two.
fn configure(device: &File, file: &File, info: LoopInfo64) -> nix::Result<()> {
    let fd = u32::try_from(file.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the structure is the kernel's (repr(C)), initialised, and outlives the call.
    match unsafe { loop_configure(device.as_raw_fd(), &config) } {
        Err(Errno::EINVAL | Errno::ENOTTY | Errno::ENOSYS) => {}
        other => return other.map(drop),
    }
    // SAFETY: LOOP_SET_FD takes a descriptor, which is open for the length of the call.
    unsafe { loop_set_fd(device.as_raw_fd(), file.as_raw_fd()) }?;
    // SAFETY: as above.
    unsafe { loop_set_status64(device.as_raw_fd(), &config.info) }.map(drop).inspect_err(|_| {
        // SAFETY: LOOP_CLR_FD takes no argument; the device is the one attached above.
        let _ = unsafe { loop_clr_fd(device.as_raw_fd()) };
    })
}

/// Attaches `file` from `offset` on, read-only. The device goes when it is unmounted and the returned file is closed.
pub fn attach(file: &File, offset: u64) -> std::io::Result<(PathBuf, File)> {
    attach_as(file, offset, LO_FLAGS_READ_ONLY)
}

/// The same of all of it.
pub fn attach_whole(file: &File) -> std::io::Result<(PathBuf, File)> {
    attach_as(file, 0, LO_FLAGS_READ_ONLY)
}

/// The same of all of it, to be written to.
pub fn attach_for_writing(file: &File) -> std::io::Result<(PathBuf, File)> {
    attach_as(file, 0, 0)
}

fn attach_as(file: &File, offset: u64, read_only: u32) -> std::io::Result<(PathBuf, File)> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
        let number = unsafe { loop_ctl_get_free(control.as_raw_fd()) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(read_only == 0).open(&path)?;
        let info = LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: read_only | LO_FLAGS_AUTOCLEAR,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        };
        match configure(&device, file, info) {
            Ok(()) => return Ok((path, device)),
            Err(Errno::EBUSY) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(std::io::Error::other("every free loop device was taken by somebody else"))
}
