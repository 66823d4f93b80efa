//! Whose is the other end of a TCP connection on this host?
//!
//! The kernel tells the owner of a socket by its addresses (sock_diag(7)); where that is not built in,
//! /proc/net/tcp does. Both show the users of the asker's namespace: others have the overflow number.

use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// SOCK_DIAG_BY_FAMILY (linux/sock_diag.h), as request and as reply.
const BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
/// struct nlmsghdr, and struct inet_diag_req_v2 behind it.
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// Where struct inet_diag_msg has the user's number.
const UID: usize = HEADER + 4 + 48 + 12;

/// The user whose socket is at the other end.
pub fn owner(stream: &TcpStream) -> Option<u32> {
    let (SocketAddr::V4(peer), SocketAddr::V4(here)) = (stream.peer_addr().ok()?, stream.local_addr().ok()?)
    else {
        return None;
    };
    by_kernel(peer, here).or_else(|| by_table(peer, here))
}

/// Asks for the one socket that has these addresses.
fn by_kernel(peer: SocketAddrV4, here: SocketAddrV4) -> Option<u32> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag).ok()?;
    let mut ask = Vec::with_capacity(HEADER + REQUEST);
    ask.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    ask.extend_from_slice(&BY_FAMILY.to_ne_bytes());
    ask.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    ask.extend_from_slice(&[0; 8]);
    ask.extend_from_slice(&[libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    ask.extend_from_slice(&u32::MAX.to_ne_bytes());
    ask.extend_from_slice(&peer.port().to_be_bytes());
    ask.extend_from_slice(&here.port().to_be_bytes());
    for address in [peer, here] {
        ask.extend_from_slice(&address.ip().octets());
        ask.extend_from_slice(&[0; 12]);
    }
    // Any interface; no cookie.
    ask.extend_from_slice(&0u32.to_ne_bytes());
    ask.extend_from_slice(&[0xff; 8]);
    send(socket.as_raw_fd(), &ask, MsgFlags::empty()).ok()?;
    let mut answer = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).ok()?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    (kind == BY_FAMILY && length >= UID + 4)
        .then(|| u32::from_ne_bytes([answer[UID], answer[UID + 1], answer[UID + 2], answer[UID + 3]]))
}

/// Lines "  1: 0100007F:1F90 0100007F:D431 01 … … … uid …": addresses in the machine's order.
fn by_table(peer: SocketAddrV4, here: SocketAddrV4) -> Option<u32> {
    let shown = |a: SocketAddrV4| format!("{:08X}:{:04X}", u32::from_ne_bytes(a.ip().octets()), a.port());
    let (peer, here) = (shown(peer), shown(here));
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        (fields.next()? == peer && fields.next()? == here).then(|| fields.nth(4)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn both_ways_tell_the_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let (SocketAddr::V4(peer), SocketAddr::V4(here)) =
            (stream.peer_addr().unwrap(), stream.local_addr().unwrap())
        else {
            panic!("IPv4 was asked for");
        };
        let us = nix::unistd::geteuid().as_raw();
        assert_eq!(by_table(peer, here), Some(us));
        assert_eq!(owner(&stream), Some(us));
        if let Some(by_kernel) = by_kernel(peer, here) {
            assert_eq!(by_kernel, us);
        }
        let nobody = SocketAddrV4::new([127, 0, 0, 1].into(), 1);
        assert_eq!((by_kernel(nobody, here), by_table(nobody, here)), (None, None));
    }
}
