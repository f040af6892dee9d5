//! Links: a program attached to an interface for as long as a descriptor is open.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use super::program::ATTACH_XDP;
use super::{LINK_CREATE, LINK_UPDATE, Program, call, open};

/// Where the kernel runs an XDP program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel makes a socket buffer.
    Native,
    /// At the start of the kernel's receive path, for drivers without XDP.
    Generic,
}

impl Mode {
    /// The mode in a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// A program on an interface. It goes with the last descriptor, so with the process, however that ends.
#[derive(Debug)]
pub struct Link(OwnedFd);

#[repr(C)]
struct Create {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
}

#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

impl Link {
    /// Attaches a program to an interface.
    ///
    /// # Errors
    /// EOPNOTSUPP when the driver has no XDP (native), ENODEV without such an interface, EBUSY when it has a
    /// program already, EINVAL or ERANGE when the driver cannot run one as it is set (MTU, LRO, queues).
    pub fn attach_xdp(program: &Program, interface: u32, mode: Mode) -> io::Result<Self> {
        let mut attributes = Create {
            program: program.as_fd().as_raw_fd().cast_unsigned(),
            interface,
            attach: ATTACH_XDP,
            // XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE
            flags: match mode {
                Mode::Generic => 2,
                Mode::Native => 4,
            },
        };
        open(LINK_CREATE, &mut attributes).map(Self)
    }

    /// Takes over another process's link: what is attached goes with the last of its descriptors.
    #[must_use]
    pub fn adopt(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Another descriptor of the link.
    ///
    /// # Errors
    /// EMFILE.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Puts another program in the place of the one that runs: a frame meets one or the other.
    ///
    /// # Errors
    /// ENOLINK when the interface is gone.
    pub fn replace(&self, program: &Program) -> io::Result<()> {
        let mut attributes = Update {
            link: self.0.as_raw_fd().cast_unsigned(),
            program: program.as_fd().as_raw_fd().cast_unsigned(),
            flags: 0,
            old_program: 0,
        };
        call(LINK_UPDATE, &mut attributes).map(drop)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
