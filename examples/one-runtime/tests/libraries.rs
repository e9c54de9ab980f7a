//! Libraries from the registry run on this runtime, unchanged.

#![cfg(unix)]

mod common;

use common::within_a_minute;
use one_runtime::{Meeting, Result};

#[test]
fn zbus_talks_peer_to_peer_without_a_bus() -> Result<()> {
    within_a_minute(one_runtime::zbus(&Meeting::new(1)))
}

#[test]
fn quinn_echoes_streams_over_loopback() -> Result<()> {
    within_a_minute(one_runtime::quinn(&Meeting::new(1)))
}

#[test]
fn async_net_echoes_over_tcp_udp_and_unix_sockets() -> Result<()> {
    within_a_minute(one_runtime::async_net(&Meeting::new(1)))
}

#[test]
fn async_process_feeds_a_child_and_learns_how_it_ended() -> Result<()> {
    within_a_minute(one_runtime::async_process(&Meeting::new(1)))
}

#[test]
fn async_fs_writes_and_reads_a_file_and_lists_a_directory() -> Result<()> {
    within_a_minute(one_runtime::async_fs(&Meeting::new(1)))
}

#[test]
fn async_std_runs_its_tasks_sockets_timers_and_jobs() -> Result<()> {
    within_a_minute(one_runtime::async_std(&Meeting::new(1)))
}
