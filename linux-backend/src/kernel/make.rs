//! Making buses and endpoints, and the file system they stand in.

use kdbus_core::abi::{BloomParameter, Cmd, Command, Errno, ItemType, ItemWriter, MakeFlags};
use rustix::fd::{AsRawFd, RawFd};
use rustix::mount::MountFlags;
use zerocopy::IntoBytes;

use super::ioctl;
use super::seam::{Module, Seam, errno};
use super::transport::Node;

/// Bytes of the longest command that makes something: a name of 63 characters and the bloom parameters.
const MAKE_SIZE: usize = 160;

/// Who may open a new node besides its maker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Access {
    /// Nobody.
    #[default]
    Owner,
    /// The maker's group.
    Group,
    /// Everybody.
    World,
}

impl Access {
    const fn flags(self) -> MakeFlags {
        match self {
            Self::Owner => MakeFlags::empty(),
            Self::Group => MakeFlags::ACCESS_GROUP,
            Self::World => MakeFlags::ACCESS_WORLD,
        }
    }
}

/// Keeps a bus or endpoint alive. With its drop the node goes, and everybody on it is disconnected.
#[derive(Debug)]
pub struct Owner<S: Seam = Module> {
    node: Node<S>,
}

impl<S: Seam> Owner<S> {
    /// The number of the open node.
    ///
    /// # Errors
    ///
    /// None as long as the value exists.
    pub fn raw_fd(&self) -> Result<RawFd, Errno> {
        self.node.fd().map(|fd| fd.as_raw_fd())
    }
}

/// Makes a bus below `root`. Its name starts with the caller's uid and a hyphen.
///
/// # Errors
///
/// What the bus reports: `EINVAL` for a name that is none of the caller's or for bloom parameters out of range,
/// `ENAMETOOLONG`, `EEXIST`, `EMFILE` at the user's 16th bus; or what `open` reports of the control file.
pub fn make_bus(root: &str, name: &str, bloom: BloomParameter, access: Access) -> Result<Owner, Errno> {
    make_bus_over(Module, root, name, bloom, access)
}

/// As [`make_bus`], behind `seam`.
///
/// # Errors
///
/// As [`make_bus`].
pub fn make_bus_over<S: Seam>(
    seam: S,
    root: &str,
    name: &str,
    bloom: BloomParameter,
    access: Access,
) -> Result<Owner<S>, Errno> {
    make(seam, &[root, "/control"], Command::BusMake, name, Some(bloom), access)
}

/// Makes a custom endpoint of the bus in the directory `bus`, of which the caller has to be the owner. Its name
/// starts with the caller's uid and a hyphen. Nobody is seen on it before it has a policy.
///
/// # Errors
///
/// What the bus reports: `EPERM`, `EINVAL` for a name that is none of the caller's, `ENAMETOOLONG`, `EEXIST`; or
/// what `open` reports of the default endpoint.
pub fn make_endpoint(bus: &str, name: &str, access: Access) -> Result<Owner, Errno> {
    make_endpoint_over(Module, bus, name, access)
}

/// As [`make_endpoint`], behind `seam`.
///
/// # Errors
///
/// As [`make_endpoint`].
pub fn make_endpoint_over<S: Seam>(
    seam: S,
    bus: &str,
    name: &str,
    access: Access,
) -> Result<Owner<S>, Errno> {
    make(seam, &[bus, "/bus"], Command::EndpointMake, name, None, access)
}

/// Mounts a kdbusfs, which is a new domain without buses, on the directory `target`; for [`ROOT`](super::ROOT)
/// the module has made it.
///
/// # Errors
///
/// What `mount` reports: `ENODEV` if the kernel has no kdbus, `ENOENT` without the directory, `EPERM` for lack
/// of privilege.
pub fn mount(target: &str) -> Result<(), Errno> {
    rustix::mount::mount("kdbusfs", target, "kdbusfs", MountFlags::empty(), None).map_err(errno)
}

fn make<S: Seam>(
    seam: S,
    path: &[&str],
    command: Command,
    name: &str,
    bloom: Option<BloomParameter>,
    access: Access,
) -> Result<Owner<S>, Errno> {
    let mut whole = heapless::String::<256>::new();
    for part in path {
        whole.push_str(part).map_err(|_| Errno::ENAMETOOLONG)?;
    }
    let node = Node::open(seam, &whole)?;
    let mut arg = [0_u64; MAKE_SIZE / 8];
    let mut items = ItemWriter::behind(arg.as_mut_bytes(), size_of::<Cmd>()).map_err(|_| Errno::EMSGSIZE)?;
    // kdbus: a node's name has at most 63 characters, so one that finds no room is too long.
    items.c_str(ItemType::MAKE_NAME, name).map_err(|_| Errno::ENAMETOOLONG)?;
    if let Some(bloom) = bloom {
        items.record(ItemType::BLOOM_PARAMETER, &bloom).map_err(|_| Errno::ENAMETOOLONG)?;
    }
    let cmd = Cmd { size: items.len() as u64, flags: access.flags().bits(), return_flags: 0 };
    let bytes = arg.as_mut_bytes();
    bytes[..size_of::<Cmd>()].copy_from_slice(cmd.as_bytes());
    ioctl::run(&node.seam, node.fd()?, command, bytes)?;
    Ok(Owner { node })
}
