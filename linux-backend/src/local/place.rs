//! Where buses are: the tree of nodes, and what the environment says of it.

use core::fmt;

use rustix::process::geteuid;

/// Bytes of the longest path that a Unix address holds.
pub const PATH_MAX: usize = 107;

/// The tree of the system's own bus.
const SYSTEM_ROOT: &[u8] = b"/run/kdbus";

/// The path of a node, or a part of one. Prints as text, with a mark in place of what is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodePath {
    bytes: [u8; PATH_MAX],
    len: u8,
}

impl NodePath {
    const EMPTY: Self = Self { bytes: [0; PATH_MAX], len: 0 };

    /// A path, or `None` if it is too long or has a NUL in it.
    #[must_use]
    pub fn new(path: &[u8]) -> Option<Self> {
        Self::EMPTY.with(path)
    }

    /// The bytes of the path.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        // `len` is never above `PATH_MAX`.
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// The path with `more` behind it, or `None` if that is too long.
    fn with(mut self, more: &[u8]) -> Option<Self> {
        let start = usize::from(self.len);
        let end = start + more.len();
        if more.contains(&0) || more.len() > PATH_MAX {
            return None;
        }
        self.bytes.get_mut(start..end)?.copy_from_slice(more);
        self.len = end as u8;
        Some(self)
    }

    fn join(self, name: &[u8]) -> Option<Self> {
        self.with(b"/")?.with(name)
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().utf8_chunks().try_for_each(|chunk| {
            f.write_str(chunk.valid())?;
            if chunk.invalid().is_empty() { Ok(()) } else { f.write_str("\u{fffd}") }
        })
    }
}

impl fmt::Debug for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for NodePath {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "{=[u8]:a}", self.as_bytes());
    }
}

/// Why there is no path to a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PlaceError {
    /// Nothing says where this user's buses are.
    NoRoot,
    /// The path is longer than [`PATH_MAX`].
    TooLong,
    /// The name is none of a bus, `<bus>/<endpoint>`, `control`, or an absolute path.
    Name,
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoot => f.write_str(
                "nothing says where the buses of this user are: set KDBUS_ROOT or XDG_RUNTIME_DIR",
            ),
            Self::TooLong => {
                write!(f, "the path of the bus is longer than {PATH_MAX} bytes: use a shorter KDBUS_ROOT")
            }
            Self::Name => f.write_str(
                "not the name of a bus: give <uid>-<bus>, <uid>-<bus>/<endpoint>, control, or an absolute path",
            ),
        }
    }
}

impl core::error::Error for PlaceError {}

/// What the environment says of buses.
///
/// ```
/// use kdbus_linux::local::Environment;
/// let environment = Environment::from_variables([b"KDBUS_ROOT=/tmp/bus".as_slice()], 7);
/// assert_eq!(environment.node("0-system").unwrap().to_string(), "/tmp/bus/0-system/bus");
/// assert_eq!(environment.node("control").unwrap().to_string(), "/tmp/bus/control");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Environment {
    uid: u32,
    root: Option<NodePath>,
    runtime_dir: Option<NodePath>,
    bus: Option<NodePath>,
}

impl Environment {
    /// An environment without variables, for user `uid`.
    #[must_use]
    pub const fn new(uid: u32) -> Self {
        Self { uid, root: None, runtime_dir: None, bus: None }
    }

    /// What `variables`, each as `NAME=value`, say for user `uid`. All but `KDBUS_ROOT`, `KDBUS_BUS` and
    /// `XDG_RUNTIME_DIR` are left out, and so are empty and overlong values.
    #[must_use]
    pub fn from_variables<'a>(variables: impl IntoIterator<Item = &'a [u8]>, uid: u32) -> Self {
        let mut environment = Self::new(uid);
        for variable in variables {
            let (place, value) = if let Some(value) = variable.strip_prefix(b"KDBUS_ROOT=") {
                (&mut environment.root, value)
            } else if let Some(value) = variable.strip_prefix(b"KDBUS_BUS=") {
                (&mut environment.bus, value)
            } else if let Some(value) = variable.strip_prefix(b"XDG_RUNTIME_DIR=") {
                (&mut environment.runtime_dir, value)
            } else {
                continue;
            };
            *place = NodePath::new(value).filter(|value| value.len != 0);
        }
        environment
    }

    /// What this process' environment says, for its effective user.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn current() -> Self {
        use std::os::unix::ffi::OsStrExt;
        let value = |name: &str| {
            std::env::var_os(name)
                .and_then(|value| NodePath::new(value.as_bytes()))
                .filter(|value| value.len != 0)
        };
        Self {
            uid: geteuid().as_raw(),
            root: value("KDBUS_ROOT"),
            runtime_dir: value("XDG_RUNTIME_DIR"),
            bus: value("KDBUS_BUS"),
        }
    }

    /// What can be known without the variables: the effective user. Without `std`, give the variables to
    /// [`from_variables`](Self::from_variables) to have the rest.
    #[cfg(not(feature = "std"))]
    #[must_use]
    pub fn current() -> Self {
        Self::new(geteuid().as_raw())
    }

    /// The environment with its buses under `root`.
    ///
    /// # Errors
    ///
    /// [`PlaceError::TooLong`].
    pub fn with_root(mut self, root: &[u8]) -> Result<Self, PlaceError> {
        self.root = Some(NodePath::new(root).ok_or(PlaceError::TooLong)?);
        Ok(self)
    }

    /// The directory of this user's buses.
    ///
    /// # Errors
    ///
    /// [`PlaceError`] if nothing says where it is.
    pub fn root(&self) -> Result<NodePath, PlaceError> {
        match (self.root, self.uid, self.runtime_dir) {
            (Some(root), ..) => Ok(root),
            (None, 0, _) => NodePath::new(SYSTEM_ROOT).ok_or(PlaceError::TooLong),
            (None, _, Some(dir)) => dir.join(b"kdbus").ok_or(PlaceError::TooLong),
            (None, _, None) => Err(PlaceError::NoRoot),
        }
    }

    /// The path of a node: of a bus by its name, of `<bus>/<endpoint>`, or of `control`. An absolute path is
    /// taken as it is.
    ///
    /// # Errors
    ///
    /// [`PlaceError`] if `name` is none of these, or if nothing says where buses are.
    pub fn node(&self, name: &str) -> Result<NodePath, PlaceError> {
        self.node_of(name.as_bytes())
    }

    /// The buses to try, in this order, when none is named: that of `KDBUS_BUS` and no other, or the user's
    /// own, the system's in the same tree, and the system's.
    pub(super) fn defaults(&self) -> [Option<Result<NodePath, PlaceError>>; 3] {
        if let Some(bus) = self.bus {
            return [Some(self.node_of(bus.as_bytes())), None, None];
        }
        let system = Some(self.node_of(b"0-system"));
        if self.uid == 0 {
            return [system, None, None];
        }
        let mut name = heapless::String::<16>::new();
        // Ten digits and a word fit.
        let _ = fmt::write(&mut name, format_args!("{}-user", self.uid));
        let elsewhere = NodePath::new(SYSTEM_ROOT)
            .and_then(|root| root.join(b"0-system/bus"))
            .map(Ok)
            .filter(|_| self.root.is_none());
        [Some(self.node(&name)), system, elsewhere]
    }

    fn node_of(&self, name: &[u8]) -> Result<NodePath, PlaceError> {
        if name.starts_with(b"/") {
            return NodePath::new(name).ok_or(PlaceError::TooLong);
        }
        let mut parts = name.split(|byte| *byte == b'/');
        let (bus, endpoint, more) = (parts.next(), parts.next(), parts.next());
        let is_name = |name: &[u8]| !name.is_empty() && name != b"." && name != b"..";
        let bus = bus.filter(|bus| is_name(bus)).ok_or(PlaceError::Name)?;
        if more.is_some() || endpoint.is_some_and(|endpoint| !is_name(endpoint)) {
            return Err(PlaceError::Name);
        }
        let place = self.root()?.join(bus);
        let node = match endpoint {
            None if bus == b"control" => place,
            None => place.and_then(|place| place.join(b"bus")),
            Some(endpoint) => place.and_then(|place| place.join(endpoint)),
        };
        node.ok_or(PlaceError::TooLong)
    }
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::*;

    fn environment(variables: &[&str], uid: u32) -> Environment {
        Environment::from_variables(variables.iter().map(|variable| variable.as_bytes()), uid)
    }

    fn defaults(environment: &Environment) -> Vec<String> {
        environment.defaults().into_iter().flatten().map(|path| path.unwrap().to_string()).collect()
    }

    #[test]
    fn names_lead_to_nodes() {
        let root = environment(&["XDG_RUNTIME_DIR=/run/user/0"], 0);
        let node = |name: &str| root.node(name).map(|path| path.to_string());
        assert_eq!(node("0-system").unwrap(), "/run/kdbus/0-system/bus");
        assert_eq!(node("7-x/guests").unwrap(), "/run/kdbus/7-x/guests");
        assert_eq!(node("/a/b").unwrap(), "/a/b");
        for wrong in ["", "a/", "a/b/c", "..", "a/.."] {
            assert_eq!(node(wrong), Err(PlaceError::Name), "{wrong:?}");
        }
        let mut long = String::from("/");
        long.extend(core::iter::repeat_n('x', PATH_MAX - 1));
        assert_eq!(node(&long).unwrap(), long);
        long.push('x');
        assert_eq!(node(&long), Err(PlaceError::TooLong));
        assert_eq!(node(&long[1..]), Err(PlaceError::TooLong));
    }

    #[test]
    fn the_root_follows_variables_and_user() {
        let root = |variables: &[&str], uid| environment(variables, uid).root().map(|path| path.to_string());
        let dir = "XDG_RUNTIME_DIR=/run/user/7";
        assert_eq!(root(&[dir, "KDBUS_ROOT=/tmp/x"], 7).unwrap(), "/tmp/x");
        assert_eq!(root(&[dir, "KDBUS_ROOT="], 7).unwrap(), "/run/user/7/kdbus");
        assert_eq!(root(&[], 7), Err(PlaceError::NoRoot));
        assert_eq!(root(&[dir], 0).unwrap(), "/run/kdbus");
    }

    #[test]
    fn without_a_name_the_users_own_bus_comes_first() {
        let mut variables = Vec::from(["XDG_RUNTIME_DIR=/run/user/7"]);
        assert_eq!(
            defaults(&environment(&variables, 7)),
            ["/run/user/7/kdbus/7-user/bus", "/run/user/7/kdbus/0-system/bus", "/run/kdbus/0-system/bus"]
        );
        assert_eq!(defaults(&environment(&variables, 0)), ["/run/kdbus/0-system/bus"]);
        variables.push("KDBUS_ROOT=/x");
        assert_eq!(defaults(&environment(&variables, 7)), ["/x/7-user/bus", "/x/0-system/bus"]);
        variables.push("KDBUS_BUS=3-y/guests");
        assert_eq!(defaults(&environment(&variables, 7)), ["/x/3-y/guests"]);
    }

    #[test]
    fn paths_print_what_they_can() {
        assert_eq!(NodePath::new(b"/a\xffb").unwrap().to_string(), "/a\u{fffd}b");
        assert_eq!(NodePath::new(b"/a\0b"), None);
    }
}
