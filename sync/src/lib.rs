//! What the cluster agrees on: a pure state machine, its openraft adapter, stored formats.
