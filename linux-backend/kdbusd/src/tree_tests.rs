use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn access(mode: u32) -> Access {
    Access { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), mode }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

#[test]
fn nodes_have_the_modes_of_the_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("kdbus");
    let mut tree = Tree::open(&root, Vec::new()).unwrap();
    let _control = tree.make_control().unwrap();
    assert_eq!(mode(&root.join("control")), 0o666);
    for (name, socket, directory) in [("1-a", 0o600, 0o500), ("1-b", 0o660, 0o550), ("1-c", 0o666, 0o555)] {
        let _bus = tree.make_bus(name, "bus", &access(socket)).unwrap();
        assert_eq!(mode(&root.join(name)), directory);
        assert_eq!(mode(&root.join(name).join("bus")), socket);
        let _endpoint = tree.make_endpoint(name, "1-e", &access(0o660)).unwrap();
        assert_eq!(mode(&root.join(name).join("1-e")), 0o660);
        assert_eq!(mode(&root.join(name)), directory, "writable only while an endpoint is made");
    }
    drop(tree);
    assert!(!root.exists());
}

#[test]
fn nodes_belong_to_whoever_made_the_bus() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::open(&dir.path().join("kdbus"), Vec::new()).unwrap();
    let other = Access { uid: 4242, gid: 4243, mode: 0o660 };
    let made = tree.make_bus("4242-a", "bus", &other);
    if rustix::process::geteuid().is_root() {
        made.unwrap();
        let node = tree.path().join("4242-a/bus").metadata().unwrap();
        assert_eq!((node.uid(), node.gid()), (4242, 4243));
        let directory = tree.path().join("4242-a").metadata().unwrap();
        assert_eq!((directory.uid(), directory.gid()), (4242, 4243));
    } else {
        assert_eq!(made.unwrap_err(), Errno::PERM);
        assert_eq!(names(&tree.root).unwrap(), [LOCK]);
    }
}

#[test]
fn a_name_is_given_once_and_is_free_again_when_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::open(&dir.path().join("kdbus"), Vec::new()).unwrap();
    let first = tree.make_bus("1-a", "bus", &access(0o600)).unwrap();
    assert_eq!(tree.make_bus("1-a", "bus", &access(0o600)).unwrap_err(), Errno::EXIST);
    assert_eq!(tree.make_endpoint("1-a", "bus", &access(0o600)).unwrap_err(), Errno::EXIST);
    connect(&tree.path().join("1-a/bus")).unwrap();
    tree.remove_bus("1-a").unwrap();
    assert_eq!(connect(&tree.path().join("1-a/bus")).unwrap_err(), Errno::NOENT);
    drop(first);
    tree.make_bus("1-a", "bus", &access(0o600)).unwrap();
    assert_eq!(names(&tree.root).unwrap().len(), 2, "no temporary node stays");
}

#[test]
fn a_living_daemon_keeps_its_tree_and_a_dead_one_loses_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("kdbus");
    let mut tree = Tree::open(&root, Vec::new()).unwrap();
    tree.make_bus("1-a", "bus", &access(0o600)).unwrap();
    let refused = Tree::open(&root, Vec::new()).unwrap_err();
    assert!(
        matches!(&refused, TreeError::Running { pid, .. } if *pid == Some(std::process::id())),
        "{refused}"
    );
    // A killed daemon: the lock goes with its descriptors, the nodes stay.
    fs::flock(&tree.lock, FlockOperation::Unlock).unwrap();
    std::mem::forget(tree);
    let tree = Tree::open(&root, Vec::new()).unwrap();
    assert_eq!(names(&tree.root).unwrap(), [LOCK]);
}

#[test]
fn what_no_daemon_made_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("kdbus");
    std::fs::create_dir_all(root.join("1-a")).unwrap();
    std::fs::write(root.join("1-a/diary"), "dear").unwrap();
    let refused = Tree::open(&root, Vec::new()).unwrap_err();
    assert!(matches!(&refused, TreeError::Foreign { path } if path.ends_with("1-a/diary")), "{refused}");
    assert!(root.join("1-a/diary").exists());
}

#[test]
fn a_root_where_others_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(Tree::open(dir.path(), Vec::new()), Err(TreeError::Untrusted { .. })));
}

#[test]
fn a_long_root_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a".repeat(100));
    let mut tree = Tree::open(&root, Vec::new()).unwrap();
    tree.make_control().unwrap();
    assert!(root.join(CONTROL).exists());
}
