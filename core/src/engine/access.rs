//! Decisions: who may own a name, talk to whom, and see what.

use super::Domain;
use super::host::Credentials;
use super::names::ConnectionIndex;
use super::policy::{Database, Level};
use super::table::{ConnIx, Place};

impl Domain<'_> {
    /// Whether `x` may own a name. `O(log of all policy entries)`.
    pub(super) fn may_own(&self, x: ConnIx, creds: &Credentials, name: &str) -> bool {
        let conn = &self.conns[x];
        if self.endpoints[conn.endpoint].custom
            && self.policy.level(Database::Endpoint(conn.endpoint), creds, name) < Some(Level::Own)
        {
            return false;
        }
        conn.owner || self.policy.level(Database::Bus(conn.bus), creds, name) >= Some(Level::Own)
    }

    /// Whether `x`, who has these credentials, may talk to `y`. `O(names y holds · log of all policy entries)`.
    pub(super) fn may_talk(&self, x: ConnIx, creds: &Credentials, y: ConnIx) -> bool {
        let conn = &self.conns[x];
        if self.endpoints[conn.endpoint].custom
            && !self.any_name_grants(Database::Endpoint(conn.endpoint), creds, y, Level::Talk)
        {
            return false;
        }
        conn.owner
            || creds.euid == self.conn_creds(y).uid
            || self.any_name_grants(Database::Bus(conn.bus), creds, y, Level::Talk)
    }

    /// Whether `x` may see a name.
    pub(super) fn sees_name(&self, x: ConnIx, creds: &Credentials, name: &str) -> bool {
        let endpoint = self.conns[x].endpoint;
        !self.endpoints[endpoint].custom
            || self.policy.level(Database::Endpoint(endpoint), creds, name) >= Some(Level::See)
    }

    /// Whether `x` may see `y`, which is to see any name that it holds.
    pub(super) fn sees_connection(&self, x: ConnIx, creds: &Credentials, y: ConnIx) -> bool {
        let endpoint = self.conns[x].endpoint;
        !self.endpoints[endpoint].custom
            || self.any_name_grants(Database::Endpoint(endpoint), creds, y, Level::See)
    }

    /// Who opened the file that a connection lives on.
    pub(super) fn conn_creds(&self, conn: ConnIx) -> &Credentials {
        &self.handles[self.conns[conn].handle].creds
    }

    fn any_name_grants(&self, database: Database, creds: &Credentials, y: ConnIx, level: Level) -> bool {
        let mut held = self.names.held(ConnectionIndex(y.index()));
        held.any(|claim| self.policy.level(database, creds, claim.name) >= Some(level))
    }
}
