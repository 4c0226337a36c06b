//! Who has written what is received (`SCM_PIDFD`), and who has connected
//! (`SO_PEERPIDFD`): process file descriptors, from Linux 6.5 on.
//!
//! The one file of the daemon with `unsafe`. Neither rustix nor nix sets `SO_PASSPIDFD` or
//! knows its messages; and nix shows none at all where some did not fit, so that descriptors
//! which a hostile peer sends along would stay open.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind};
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};

/// The control message with the writer's process, of linux/socket.h.
const SCM_PIDFD: libc::c_int = 4;

/// The process that connected this socket.
///
/// # Errors
/// What the system says: `ENOPROTOOPT` where the kernel has no such thing.
pub(super) fn connected(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(getsockopt(&socket, sockopt::PeerPidfd)?)
}

/// Has the kernel tell with whatever is sent from now on who sends it, or no longer.
///
/// # Errors
/// What the system says.
pub(super) fn tell_writers(socket: BorrowedFd<'_>, tell: bool) -> io::Result<()> {
    let value = libc::c_int::from(tell);
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel reads `length`
    // bytes of `value`, which is that long and outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSPIDFD,
            (&raw const value).cast(),
            length,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Receives what one process has written: the kernel puts no two writers' bytes together.
/// 0 bytes: the peer has closed the connection.
///
/// # Errors
/// What the system says. [`ErrorKind::InvalidData`]: there is no writer to it (it is gone), or
/// something else comes along, such as descriptors.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    room: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    // For the writer and a little more, aligned.
    let mut control = [0_u64; 8];
    let mut parts = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: a header of zeros is one without address, parts and control messages.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut parts;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the descriptor is open while it is borrowed; header, parts, room and control
    // outlive the call, are nobody else's meanwhile, and as long as they are said to be.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // All of them are taken before anything is judged: what is dropped is closed.
    // SAFETY: the kernel has filled the header in, whose control messages are in `control`.
    let mut messages = unsafe { descriptors(&header) };
    match (messages.pop(), messages.is_empty()) {
        (None, _) if count == 0 => Ok((0, None)),
        (Some((SCM_PIDFD, writer)), true) => Ok((count, Some(writer))),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// The descriptors that came with a message, each with what kind of control message it is of.
///
/// # Safety
/// The header is as `recvmsg` left it, its control messages are still there, and nobody else
/// takes the descriptors.
unsafe fn descriptors(header: &libc::msghdr) -> Vec<(libc::c_int, OwnedFd)> {
    let mut found = Vec::new();
    // SAFETY: the caller's promise; it is null, or points to a whole header in the buffer.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: as above, and aligned, since the buffer is.
    while let Some(message) = unsafe { next.as_ref() } {
        // SAFETY: the data follow that header.
        let data = unsafe { libc::CMSG_DATA(next) }.cast_const();
        let before = data.addr().saturating_sub(next.addr());
        let length = message.cmsg_len.saturating_sub(before);
        let numbers = length.checked_div(size_of::<libc::c_int>()).unwrap_or(0);
        let is_known = matches!(message.cmsg_type, libc::SCM_RIGHTS | SCM_PIDFD);
        if message.cmsg_level == libc::SOL_SOCKET && is_known {
            for number in 0..numbers {
                // SAFETY: `cmsg_len` says that so many numbers are there.
                let number = unsafe { data.cast::<libc::c_int>().add(number).read_unaligned() };
                // A negative one is an error: the writer is gone.
                if number >= 0 {
                    // SAFETY: the kernel has opened it for this process just now, and each
                    // message is read once.
                    found.push((message.cmsg_type, unsafe { OwnedFd::from_raw_fd(number) }));
                }
            }
        }
        // SAFETY: as for the first one.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    fn open_files() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn what_is_written_comes_with_its_writer() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        tell_writers(ours.as_fd(), true).unwrap();
        theirs.write_all(b"hello").unwrap();
        let mut room = [0; 16];
        let (count, writer) = receive(ours.as_fd(), &mut room).unwrap();
        assert_eq!(&room[..count], b"hello");
        assert!(writer.is_some());
        let waiting = receive(ours.as_fd(), &mut room).unwrap_err();
        assert_eq!(waiting.kind(), ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(receive(ours.as_fd(), &mut room).unwrap().0, 0);
    }

    #[test]
    fn without_a_writer_it_is_not_taken() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(b"hello").unwrap();
        let refused = receive(ours.as_fd(), &mut [0; 16]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn descriptors_that_are_sent_along_are_refused_and_closed() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        tell_writers(ours.as_fd(), true).unwrap();
        let before = open_files();
        for count in [1, 3, 100] {
            let sent = vec![theirs.as_fd(); count];
            let mut space = vec![std::mem::MaybeUninit::uninit(); 1024];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&sent)));
            let parts = [IoSlice::new(b"hello")];
            sendmsg(&theirs, &parts, &mut control, SendFlags::empty()).unwrap();
            let refused = receive(ours.as_fd(), &mut [0; 16]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidData, "{count}");
        }
        assert_eq!(open_files(), before);
    }
}
