//! The kdbus UAPI: commands, items, flags and error numbers, byte for byte.
//!
//! Identical in every release of the module; all integers are native-endian, all records 8-byte aligned.

mod cmd;
mod errno;
mod flags;
mod frame;
mod item;
mod msg;

pub use cmd::{
    Arity, CMD_MAX_SIZE, Cmd, CmdFree, CmdHello, CmdInfo, CmdList, CmdMatch, CmdRecv, CmdSend, Command,
    MESSAGE, Shape,
};
pub use errno::Errno;
pub use flags::{
    AttachFlags, FLAG_NEGOTIATE, HelloFlags, ListFlags, MakeFlags, MatchFlags, MsgFlags, NameFlags,
    RecvFlags, RecvReturnFlags, SendFlags,
};
pub use frame::{Frame, FrameError};
pub use item::{ITEM_HEADER, Item, ItemError, ItemType, ItemWriter, Items, NoRoom, align8};
pub use msg::{
    Audit, BloomParameter, Caps, Creds, DST_ID_BROADCAST, DST_ID_NAME, IdChange, Info, MATCH_ID_ANY, Memfd,
    Msg, MsgInfo, OFFSET_ZEROS, PAYLOAD_DBUS, PAYLOAD_KERNEL, Pids, PolicyAccess, SRC_ID_KERNEL, Timestamp,
    Vec,
};
