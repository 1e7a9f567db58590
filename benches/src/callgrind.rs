//! Instructions
