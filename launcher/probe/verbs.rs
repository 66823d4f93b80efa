//! Verbs: every device is opened, and on every active port an RC queue pair writes to itself.
//!
//! Layouts: libibverbs/verbs.h, which are an ABI since rdma-core 1 (IBVERBS_1.1). Numbers: the same.

use core::ffi::{c_char, c_int, c_uint, c_void};

use crate::c;
use crate::library::Library;
use crate::say::Line;

/// So much is written.
const BYTES: usize = 1 << 20;
const ACCESS: c_int = 1 | 2; // LOCAL_WRITE, REMOTE_WRITE
const ACTIVE: u32 = 4;
const ETHERNET: u8 = 2;
/// More than any adapter has.
const MAX_PORTS: u8 = 4;
const MAX_GIDS: c_int = 16;
const MAX_DEVICES: usize = 64;
/// A write to oneself takes microseconds, or with an emulated processor milliseconds.
const PATIENCE: f64 = 10.0;

type Pointer = *mut c_void;

/// The start of `struct ibv_port_attr`.
#[repr(C)]
#[derive(Default)]
struct PortAttributes {
    state: u32,
    max_mtu: u32,
    active_mtu: u32,
    gid_tbl_len: c_int,
    more: [u32; 4],
    pkey_tbl_len: u16,
    lid: u16,
    sm_lid: u16,
    small: [u8; 8],
    link_layer: u8,
    rest: [u8; 32],
}

#[repr(C)]
struct QueuePairInit {
    context: Pointer,
    send_cq: Pointer,
    recv_cq: Pointer,
    srq: Pointer,
    max_send: u32,
    max_recv: u32,
    max_send_sge: u32,
    max_recv_sge: u32,
    max_inline: u32,
    kind: u32,
    signal_all: c_int,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct AddressHandle {
    dgid: [u8; 16],
    flow_label: u32,
    sgid_index: u8,
    hop_limit: u8,
    traffic_class: u8,
    padding: u8,
    dlid: u16,
    sl: u8,
    src_path_bits: u8,
    static_rate: u8,
    is_global: u8,
    port_num: u8,
    end: u8,
}

#[repr(C)]
#[derive(Default)]
struct QueuePairAttributes {
    state: u32,
    current: u32,
    path_mtu: u32,
    path_mig_state: u32,
    qkey: u32,
    rq_psn: u32,
    sq_psn: u32,
    dest_qp_num: u32,
    access: c_uint,
    capacity: [u32; 5],
    address: AddressHandle,
    alternative: AddressHandle,
    pkey_index: u16,
    alt_pkey_index: u16,
    en_sqd_async_notify: u8,
    sq_draining: u8,
    max_rd_atomic: u8,
    max_dest_rd_atomic: u8,
    min_rnr_timer: u8,
    port_num: u8,
    timeout: u8,
    retry_cnt: u8,
    rnr_retry: u8,
    rest: [u8; 11],
}

#[repr(C)]
struct Element {
    address: u64,
    length: u32,
    lkey: u32,
}

#[repr(C)]
struct SendRequest {
    id: u64,
    next: Pointer,
    list: *mut Element,
    count: c_int,
    opcode: u32,
    flags: c_uint,
    immediate: u32,
    remote_address: u64,
    rkey: u32,
    rest: [u8; 76],
}

#[repr(C)]
#[derive(Default)]
struct Completion {
    id: u64,
    status: u32,
    rest: [u32; 9],
}

const _: () = assert!(size_of::<QueuePairAttributes>() == 144 && size_of::<QueuePairInit>() == 64);
const _: () = assert!(size_of::<SendRequest>() == 128 && size_of::<Completion>() == 48);
const _: () = assert!(core::mem::offset_of!(PortAttributes, link_layer) == 46);
const _: () = assert!(core::mem::offset_of!(PortAttributes, lid) == 34);
const _: () = assert!(core::mem::offset_of!(QueuePairAttributes, rnr_retry) == 132);

/// Functions of libibverbs.
struct Verbs {
    get_device_name: unsafe extern "C" fn(Pointer) -> *const c_char,
    open_device: unsafe extern "C" fn(Pointer) -> Pointer,
    close_device: unsafe extern "C" fn(Pointer) -> c_int,
    query_port: unsafe extern "C" fn(Pointer, u8, *mut PortAttributes) -> c_int,
    query_gid: unsafe extern "C" fn(Pointer, u8, c_int, *mut [u8; 16]) -> c_int,
    alloc_pd: unsafe extern "C" fn(Pointer) -> Pointer,
    reg_mr: unsafe extern "C" fn(Pointer, Pointer, usize, c_int) -> Pointer,
    create_cq: unsafe extern "C" fn(Pointer, c_int, Pointer, Pointer, c_int) -> Pointer,
    create_qp: unsafe extern "C" fn(Pointer, *mut QueuePairInit) -> Pointer,
    modify_qp: unsafe extern "C" fn(Pointer, *mut QueuePairAttributes, c_int) -> c_int,
}

/// A field of a structure whose layout is the library's.
///
/// # Safety
/// There is one of this type at this offset.
unsafe fn at<T: Copy>(structure: Pointer, offset: usize) -> T {
    // SAFETY: by the caller.
    unsafe { structure.cast::<u8>().add(offset).cast::<T>().read_unaligned() }
}

pub fn probe() {
    let Some(library) = Library::open(c"libibverbs.so.1", c::RTLD_GLOBAL) else { return };
    // SAFETY: signatures of verbs.h.
    let found = unsafe {
        (|| {
            let list: unsafe extern "C" fn(*mut c_int) -> *mut Pointer =
                library.function(c"ibv_get_device_list")?;
            let verbs = Verbs {
                get_device_name: library.function(c"ibv_get_device_name")?,
                open_device: library.function(c"ibv_open_device")?,
                close_device: library.function(c"ibv_close_device")?,
                query_port: library.function(c"ibv_query_port")?,
                query_gid: library.function(c"ibv_query_gid")?,
                alloc_pd: library.function(c"ibv_alloc_pd")?,
                reg_mr: library.function(c"ibv_reg_mr")?,
                create_cq: library.function(c"ibv_create_cq")?,
                create_qp: library.function(c"ibv_create_qp")?,
                modify_qp: library.function(c"ibv_modify_qp")?,
            };
            Some((list, verbs))
        })()
    };
    let Some((list, verbs)) = found else { return };
    let mut count = 0;
    // SAFETY: as documented; the list ends with a null pointer.
    let devices = unsafe { list(&mut count) };
    Line::new("devices")
        .field("count", count)
        .field("errno", if devices.is_null() { c::errno() } else { 0 })
        .say();
    if devices.is_null() {
        return;
    }
    for n in 0..usize::try_from(count).unwrap_or(0).min(MAX_DEVICES) {
        // SAFETY: the list has `count` elements.
        verbs.device(unsafe { *devices.add(n) });
    }
}

impl Verbs {
    fn device(&self, device: Pointer) {
        // SAFETY: a device of the list.
        let (name, context) = unsafe {
            let name = (self.get_device_name)(device);
            Line::new("device").text("name", name).say();
            (name, (self.open_device)(device))
        };
        if context.is_null() {
            Line::new("opened").text("name", name).field("errno", c::errno()).say();
            return;
        }
        Line::new("opened").text("name", name).field("errno", 0).say();
        for port in 1..=MAX_PORTS {
            let mut attributes = PortAttributes::default();
            // SAFETY: an open device; the structure is larger than any version of it.
            if unsafe { (self.query_port)(context, port, &mut attributes) } != 0 {
                break;
            }
            let is_ethernet = attributes.link_layer == ETHERNET;
            Line::new("port")
                .text("name", name)
                .field("port", port)
                .field("state", attributes.state)
                .field("ethernet", u8::from(is_ethernet))
                .field("lid", attributes.lid)
                .say();
            if attributes.state == ACTIVE {
                self.write(name, context, port, &attributes);
            }
        }
        // SAFETY: nobody uses it any more; what hangs on it ends with this process.
        unsafe { (self.close_device)(context) };
    }

    /// Writes memory to memory by way of a port.
    fn write(&self, name: *const c_char, context: Pointer, port: u8, attributes: &PortAttributes) {
        let failed = |what: &str, errno: c_int| {
            Line::new("write")
                .text("name", name)
                .field("port", port)
                .field("failed", what)
                .field("errno", errno)
                .say();
        };
        let (Some(from), Some(to)) = (c::zeroed(BYTES), c::zeroed(BYTES)) else {
            return failed("calloc", 12);
        };
        for (n, byte) in from.iter_mut().enumerate() {
            *byte = (n * 7 + n / 251) as u8;
        }
        // SAFETY: signatures and layouts of verbs.h; the memory lives as long as the process.
        unsafe {
            let pd = (self.alloc_pd)(context);
            if pd.is_null() {
                return failed("ibv_alloc_pd", c::errno());
            }
            let mr = (self.reg_mr)(pd, from.as_mut_ptr().cast(), BYTES, ACCESS);
            if mr.is_null() {
                return failed("ibv_reg_mr", c::errno());
            }
            let other = (self.reg_mr)(pd, to.as_mut_ptr().cast(), BYTES, ACCESS);
            if other.is_null() {
                return failed("ibv_reg_mr", c::errno());
            }
            let null = core::ptr::null_mut();
            let cq = (self.create_cq)(context, 16, null, null, 0);
            if cq.is_null() {
                return failed("ibv_create_cq", c::errno());
            }
            let mut init = QueuePairInit {
                context: null,
                send_cq: cq,
                recv_cq: cq,
                srq: null,
                max_send: 4,
                max_recv: 4,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline: 0,
                kind: 2, // IBV_QPT_RC
                signal_all: 1,
                padding: 0,
            };
            let qp = (self.create_qp)(pd, &mut init);
            if qp.is_null() {
                return failed("ibv_create_qp", c::errno());
            }
            let number: u32 = at(qp, 52);
            let mut attributes_ = QueuePairAttributes {
                state: 1, // INIT
                access: ACCESS as c_uint,
                port_num: port,
                ..QueuePairAttributes::default()
            };
            let status = (self.modify_qp)(qp, &mut attributes_, 57);
            if status != 0 {
                return failed("ibv_modify_qp to INIT", status);
            }
            attributes_.state = 2; // RTR
            attributes_.path_mtu = attributes.active_mtu;
            attributes_.dest_qp_num = number;
            attributes_.max_dest_rd_atomic = 1;
            attributes_.min_rnr_timer = 12;
            attributes_.address =
                AddressHandle { dlid: attributes.lid, port_num: port, ..AddressHandle::default() };
            if attributes.link_layer == ETHERNET || attributes.lid == 0 {
                // The last of the table is the most general: RoCE v2 with an address of IP, where there is one.
                let mut gid = [0; 16];
                let mut found = None;
                for index in 0..attributes.gid_tbl_len.min(MAX_GIDS) {
                    if (self.query_gid)(context, port, index, &mut gid) == 0 && gid != [0; 16] {
                        found = Some((index, gid));
                    }
                }
                let Some((index, gid)) = found else { return failed("ibv_query_gid: no address", 0) };
                attributes_.address.dgid = gid;
                attributes_.address.sgid_index = index as u8;
                attributes_.address.hop_limit = 64;
                attributes_.address.is_global = 1;
            }
            let status = (self.modify_qp)(qp, &mut attributes_, 1_216_897);
            if status != 0 {
                return failed("ibv_modify_qp to RTR", status);
            }
            attributes_.state = 3; // RTS
            attributes_.timeout = 17;
            attributes_.retry_cnt = 7;
            attributes_.rnr_retry = 7;
            attributes_.max_rd_atomic = 1;
            let status = (self.modify_qp)(qp, &mut attributes_, 77_313);
            if status != 0 {
                return failed("ibv_modify_qp to RTS", status);
            }
            let mut element =
                Element { address: from.as_ptr() as u64, length: BYTES as u32, lkey: at(mr, 36) };
            let mut request = SendRequest {
                id: 1,
                next: null,
                list: &mut element,
                count: 1,
                opcode: 0, // IBV_WR_RDMA_WRITE
                flags: 2,  // IBV_SEND_SIGNALED
                immediate: 0,
                remote_address: to.as_ptr() as u64,
                rkey: at(other, 40),
                rest: [0; 76],
            };
            // The functions that verbs.h calls inline: context->ops.post_send and .poll_cq.
            let post: unsafe extern "C" fn(Pointer, *mut SendRequest, *mut Pointer) -> c_int =
                at(context, 8 + 200);
            let poll: unsafe extern "C" fn(Pointer, c_int, *mut Completion) -> c_int = at(context, 8 + 88);
            let mut bad = null;
            let began = c::now();
            let status = post(qp, &mut request, &mut bad);
            if status != 0 {
                return failed("ibv_post_send", status);
            }
            let mut completion = Completion::default();
            loop {
                match poll(cq, 1, &mut completion) {
                    0 if c::now() - began < PATIENCE => continue,
                    0 => return failed("the write never completed", 0),
                    1 if completion.status == 0 => break,
                    1 => {
                        let status = completion.status as c_int;
                        Line::new("write")
                            .text("name", name)
                            .field("port", port)
                            .field("completion", status)
                            .say();
                        return;
                    }
                    other => return failed("ibv_poll_cq", other),
                }
            }
            let microseconds = ((c::now() - began) * 1e6) as u64;
            let equal = from == to;
            Line::new("write")
                .text("name", name)
                .field("port", port)
                .field("bytes", BYTES)
                .field("microseconds", microseconds)
                .field("equal", u8::from(equal))
                .say();
        }
    }
}
