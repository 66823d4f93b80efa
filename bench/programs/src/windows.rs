//! Windows of messages: the calls that rsmpi has no cheap form of.
//!
//! rsmpi's `RequestCollection` wants one borrowed buffer per request and keeps a status for each; OSU's loops
//! send one buffer many times over. Here requests and statuses live in arrays that are used again, as in OSU's.

#![expect(unsafe_code, reason = "many requests on one buffer, which no safe call of rsmpi expresses")]

use mpi::ffi::{self, MPI_Comm, MPI_Request, MPI_Status};
use mpi::topology::Communicator;
use std::ffi::c_int;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Tag of the messages of a window, as OSU's.
const TAG: c_int = 100;

/// Requests of one window, to and from one peer.
pub struct Window<'a> {
    requests: Vec<MPI_Request>,
    // Nobody reads them; the library's cost of writing them is part of what OSU measures.
    statuses: Vec<MaybeUninit<MPI_Status>>,
    communicator: MPI_Comm,
    peer: c_int,
    // The communicator must not be freed while we are there.
    owner: PhantomData<&'a ()>,
}

impl<'a> Window<'a> {
    /// Room for `length` messages each way.
    pub fn new<C: Communicator>(communicator: &'a C, peer: i32, length: usize) -> Self {
        // SAFETY: a constant of the library, set before main.
        let null = unsafe { ffi::RSMPI_REQUEST_NULL };
        Window {
            requests: vec![null; 2 * length],
            statuses: vec![MaybeUninit::uninit(); length],
            communicator: communicator.as_raw(),
            peer,
            owner: PhantomData,
        }
    }

    /// Sends `message` once per place of the window, and waits for all of them.
    #[inline]
    pub fn send(&mut self, message: &[u8]) {
        let half = self.requests.len() / 2;
        self.post_sends(half, message);
        self.wait(half, half);
    }

    /// Receives into `message` once per place of the window, and waits for all of them.
    #[inline]
    pub fn receive(&mut self, message: &mut [u8]) {
        let half = self.requests.len() / 2;
        self.post_receives(message);
        self.wait(0, half);
    }

    /// Both at once, receives posted first; waits for the sends, then for the receives, as OSU does.
    #[inline]
    pub fn exchange(&mut self, out: &[u8], message: &mut [u8]) {
        let half = self.requests.len() / 2;
        self.post_receives(message);
        self.post_sends(half, out);
        self.wait(half, half);
        self.wait(0, half);
    }

    #[inline]
    fn post_sends(&mut self, from: usize, message: &[u8]) {
        let count = count(message);
        for request in &mut self.requests[from..] {
            // SAFETY: `message` outlives the request: each caller waits before it returns, and a panic aborts.
            // Sizes fit (`count`). Many sends may read one buffer (MPI 3.1, 3.7.2).
            unsafe {
                ffi::MPI_Isend(
                    message.as_ptr().cast(),
                    count,
                    ffi::RSMPI_UINT8_T,
                    self.peer,
                    TAG,
                    self.communicator,
                    request,
                );
            }
        }
    }

    #[inline]
    fn post_receives(&mut self, message: &mut [u8]) {
        let (count, half) = (count(message), self.requests.len() / 2);
        for request in &mut self.requests[..half] {
            // SAFETY: `message` is borrowed mutably until the caller has waited. Receives that overlap are what
            // OSU's loops do; they carry the same bytes, and nobody reads them before all are complete.
            unsafe {
                ffi::MPI_Irecv(
                    message.as_mut_ptr().cast(),
                    count,
                    ffi::RSMPI_UINT8_T,
                    self.peer,
                    TAG,
                    self.communicator,
                    request,
                );
            }
        }
    }

    #[inline]
    fn wait(&mut self, from: usize, length: usize) {
        let requests = &mut self.requests[from..from + length];
        let statuses = &mut self.statuses[..length];
        // SAFETY: these requests were started above, the library sets each to null, and has room for as many
        // statuses.
        unsafe {
            ffi::MPI_Waitall(length as c_int, requests.as_mut_ptr(), statuses.as_mut_ptr().cast());
        }
    }
}

/// MPI counts with `int`; `sizes` lets nothing larger through.
fn count(message: &[u8]) -> c_int {
    c_int::try_from(message.len()).expect("sizes are limited to MPI's int")
}
