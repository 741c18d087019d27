//! Keys of Avocado-VT's configurations: who reads them here, and of those that nobody reads, why.
//!
//! Who reads a key is asked from the scenarios themselves. Here stands only what they do not read, so that a key is never
//! told to be without effect that has one: a test holds the two apart.

use std::collections::BTreeMap;

use vt_protocol::job::KeyInfo;

use super::ALL;

/// Keys that say which cases there are, whatever their scenario.
const OF_RUNS: &[(&str, &str)] = &[
    ("type", "names the scenario of a variant"),
    ("skip", "yes: the variant is skipped"),
    ("dep", "variants that have to pass first"),
    ("name", "the name of the variant, by which it is reported"),
    ("shortname", "its short name, by which its case is called"),
];

/// Keys that nothing reads, and why.
pub(super) const WITHOUT_EFFECT: &[(&str, &[&str])] = &[
    (
        "a VM boots from an image of the catalogue (image), with an overlay of its own for each case: nothing is made or removed \
         by hand",
        &[
            "remove_image",
            "image_boot",
            "image_snapshot",
            "force_image_clone",
            "image_clone_command",
            "image_remove_command",
            "remove_image_on_check_error",
            "master_image_name",
            "master_images_clone",
            "clone_master",
            "disk_prepare_timeout",
            "preprocess_env",
            "not_preprocess",
        ],
    ),
    (
        "a case never writes an image: what it writes goes into an overlay that ends with the case, so that the image is after \
         it what it was before, and there is nothing to be backed up or restored (`vtctl run --keep` leaves the VM and its disk)",
        &[
            "backup_image_before_testing",
            "backup_image_after_testing_passed",
            "restore_image",
            "restore_image_after_testing",
            "restore_image_on_check_error",
            "save_image",
        ],
    ),
    (
        "golden images are those of the catalogue: each host has copies that are compared with their digests, and takes them from \
         any host that has one",
        &["images_good"],
    ),
    (
        "every VM has devices of the same kinds: virtio disks, network cards, a serial console and the channels of \
         probe and agent",
        &[
            "drive_format",
            "drive_index",
            "drive_cache",
            "drive_werror",
            "drive_rerror",
            "drive_serial",
            "blk_extra_params",
            "bus_extra_params",
            "usbs",
            "cpu_model_flags",
            "rtc_drift",
            "iothreads",
        ],
    ),
    (
        "a guest's network is a bridge of vtmesh's own on each host, and its address the same on all of them",
        &[
            "nic_mode",
            "netdst",
            "bridge",
            "mac",
            "redirs",
            "guest_port",
            "file_transfer_client",
            "file_transfer_port",
            "regain_ip_cmd",
        ],
    ),
    (
        "the daemon alone speaks to QEMU, by QMP; a scenario asks it for commands that may do no harm",
        &["monitors", "main_monitor", "monitor_type", "catch_monitor"],
    ),
    (
        "VMs have no display, so that there is nothing to be seen, kept or sent keys by pictures",
        &[
            "display",
            "spice",
            "qxl",
            "qxl_dev_nr",
            "keep_ppm_files",
            "convert_ppm_files_to_png",
            "keep_screendumps",
            "steps",
        ],
    ),
    (
        "programs of a host are named in its settings, by who runs the host; qemu-img is the one in its PATH",
        &["qemu_img_binary"],
    ),
    (
        "words for QEMU's command line come from scenarios alone: both hosts must have the same, and they reach files of the host",
        &["extra_params"],
    ),
    (
        "a case runs nothing on a host but its party: hosts are shared, and what a command left behind would be nobody's",
        &[
            "pre_command",
            "pre_command_timeout",
            "pre_command_noncritical",
            "post_command",
            "post_command_timeout",
            "post_command_noncritical",
            "profilers",
            "host_sync_time_cmd",
            "load_host_cmd",
        ],
    ),
    (
        "a scenario starts its VM on host1, and the VM ends with its case (`vtctl run --keep` leaves it)",
        &[
            "start_vm",
            "restart_vm",
            "start_vm_for_migration",
            "main_vm",
            "migration_mode",
            "kill_vm",
            "kill_vm_on_error",
            "kill_vm_gracefully",
            "kill_vm_timeout",
            "kill_unresponsive_vms",
            "kill_timeout",
            "reuse_previous_config",
            "check_vm_needs_restart",
            "check_vm_before_migration",
            "strict_mode",
        ],
    ),
    (
        "the console, the probe, the agent and ssh of the built-in guest are known, and asked after every move",
        &[
            "guest_root",
            "ssh_port",
            "ssh_prompt",
            "use_telnet",
            "cmd_shutdown",
            "cmd_reboot",
            "shutdown_command",
            "reboot_command",
            "serial_login",
            "need_to_login",
            "login_before_pre_tests",
            "not_login_after_mig",
        ],
    ),
    (
        "how long a case may take is said with `vtctl run --case-timeout`, how long a move with mig_timeout",
        &[
            "test_timeout",
            "timeout",
            "migration_timeout",
            "migrate_timeout",
            "start_migration_timeout",
            "wait_mig_timeout",
            "pre_sub_test_timeout",
            "services_up_timeout",
        ],
    ),
    (
        "hosts are those of -m, their daemons know each other, and ports are chosen for each migration",
        &[
            "hosts",
            "hostid",
            "comm_port",
            "migrate_port",
            "migrate_proto",
            "migrate_source_host",
            "migrate_dest_host",
            "migrate_shared_storage",
            "migrate_vms",
            "migrate_main_vm",
            "migration_setup",
        ],
    ),
    (
        "what is done to a transfer hangs on its phases, as QEMU's events tell them (cancel_at, at), never on seconds",
        &[
            "cancel_delay",
            "sleep_before_migration",
            "wait_before_stop",
            "change_speed_interval",
            "not_wait_for_migration",
            "enable_random_timeout",
        ],
    ),
    (
        "what keeps the guest busy are its probes and a load of its own (stress_cpu, stress_disk), which tell after every move \
         whether they have got on: no program has to be brought, built or looked for",
        &[
            "migration_test_command",
            "migration_bg_command",
            "migration_bg_check_command",
            "migration_bg_kill_command",
            "control_args",
            "check_running_cmd",
            "need_cleanup",
            "stress_cmd",
            "stress_kill_cmd",
            "kill_bg_stress_cmd",
            "autostress",
            "need_stress",
            "sub_test",
            "test_after_load",
            "unload_stress_in_the_end",
            "install_cmd",
            "install_path",
            "config_cmd",
            "tmp_dir",
            "iterations",
            "used_mem",
            "disk_usage",
            "cpuflags_install_path",
            "stressapptest_insatll_cmd",
            "stressapptest_repo",
        ],
    ),
    (
        "the probe measures clocks and load inside the guest: no command has to be found, and no output of one to be read",
        &[
            "time_command",
            "time_filter_re",
            "time_format",
            "check_clocksource_cmd",
            "create_file",
            "sar_cmd_in_guest",
            "sar_cpu_str",
            "sar_memory_str",
            "sar_log_name",
            "get_sar_output_cmd",
        ],
    ),
    (
        "data goes over one TCP connection and is compared as it comes back: there is no file, on neither side",
        &["guest_path", "del_file_with_err", "src_file", "dst_file", "filesize", "copy_file_cmd", "md5sum_cmd"],
    ),
    (
        "both runs are made, with the capability or the cache and without it",
        &["need_set_auto_converge", "need_set_speed", "set_cache_size"],
    ),
    (
        "the module is the one of the guest's network card, and its commands are the guest's own",
        &["driver_load_cmd", "driver_unload_cmd", "driver_id_cmd", "driver_id_pattern", "module_name"],
    ),
    (
        "the disk that is plugged in is made for it, and waited for as long as the guest may take",
        &["attempts", "attempts_timeout", "attempt_timeout"],
    ),
    (
        "QEMU says which flags the model has on both hosts, and the guest which it sees",
        &["guest_spec_flags", "host_spec_flags", "all_host_supported_flags", "auto_cpu_model"],
    ),
    (
        "the CDs of the test of CD drives are made for its case, and what is done to a drive is done by the guest's kernel and seen in \
         QEMU: no program has to be found in the guest",
        &[
            "cd_format",
            "target_cdrom",
            "cdrom_preapre_timeout",
            "cdrom_test_autounlock",
            "cdrom_test_locked",
            "cdrom_test_tray_status",
            "checksum_timeout",
            "eject_cdrom_cmd",
            "close_cdrom_cmd",
            "lock_cdrom_cmd",
            "unlock_cdrom_cmd",
            "mount_cdrom_cmd",
            "umount_cdrom_cmd",
            "show_mount_cmd",
            "readonly_test_cmd",
            "remove_file_cmd",
            "tray_check_cmd",
            "workaround_eject_time",
        ],
    ),
    (
        "the disks of the test of floppy disks are made for its case, and it writes sectors where the old one makes a file system",
        &[
            "second_floppy_name",
            "guest_floppy_path",
            "floppy_preapre_timeout",
            "floppy_prepare_timeout",
            "check_copy_path",
            "mount_dir",
        ],
    ),
    (
        "the built-in guest has no second kernel that could write a dump: these variants are skipped",
        &[
            "crash_timeout",
            "crash_cmd",
            "vmcore_chk_cmd",
            "kdump_config",
            "kdump_enable_cmd",
            "kdump_propagate_cmd",
            "kdump_restart_cmd",
            "kdump_status_cmd",
            "kernel_param_cmd",
        ],
    ),
    (
        "the serial log of the guest is in the evidence whole, and what its kernel says is no part of a verdict",
        &["verify_host_dmesg", "verify_guest_dmesg", "guest_dmesg_level"],
    ),
    ("which variants have to pass first is what the language makes of their names, in `dep`", &["depend"]),
    (
        "there is one kind of test, of a machine of QEMU that its daemon owns",
        &["virt_test_type", "force_reset_go_down_check"],
    ),
];

/// Every key that is known here, in order.
pub fn list() -> Vec<KeyInfo> {
    let mut keys: BTreeMap<&str, KeyInfo> = BTreeMap::new();
    let known = |keys: &mut BTreeMap<&'static str, KeyInfo>, key: &'static str| {
        keys.entry(key).or_insert_with(|| KeyInfo { key: key.to_owned(), ..KeyInfo::default() });
    };
    for (key, meaning) in OF_RUNS {
        known(&mut keys, key);
        if let Some(info) = keys.get_mut(key) {
            info.meaning = (*meaning).to_owned();
            info.read_by.push("every run".to_owned());
        }
    }
    for scenario in ALL {
        let own = scenario.params().map(|(key, _, meaning)| (*key, *meaning));
        for (key, meaning) in own.chain(scenario.also_reads().map(|key| (key, ""))) {
            known(&mut keys, key);
            let Some(info) = keys.get_mut(key) else { continue };
            if info.meaning.is_empty() {
                meaning.clone_into(&mut info.meaning);
            }
            if info.read_by.iter().all(|name| name != scenario.name) {
                info.read_by.push(scenario.name.to_owned());
            }
        }
    }
    for (why, unread) in WITHOUT_EFFECT {
        for key in *unread {
            known(&mut keys, key);
            if let Some(info) = keys.get_mut(key).filter(|info| info.read_by.is_empty()) {
                info.without_effect = Some((*why).to_owned());
            }
        }
    }
    keys.into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vt_protocol::params::{Origin, Params};

    use super::*;

    /// Keys of the multi-host configuration and of the documentation of Avocado-VT, without the names of hosts, images
    /// and other objects behind them.
    const DOCUMENTED: &str = "
        all_host_supported_flags attempt_timeout attempts attempts_timeout auto_cpu_model autostress
        backup_image_after_testing_passed backup_image_before_testing backup_image_on_check_error bg_stress_test
        blk_extra_params bridge bus_extra_params cache_size cancel_delay capabilitys capabilitys_state catch_monitor
        cd_format cdrom cdrom_preapre_timeout cdrom_size cdrom_test_autounlock cdrom_test_locked cdrom_test_tray_status
        cdroms change_speed_interval check_clocksource_cmd check_copy_path check_image check_running_cmd
        check_vm_before_migration check_vm_needs_restart checksum_timeout clocksource close_cdrom_cmd cmd_reboot
        depend cmd_shutdown comm_port config_cmd control_args convert_ppm_files_to_png copy_file_cmd copy_timeout
        count_of_change cpu_model cpu_model_flags cpuflags_install_path crash_cmd crash_timeout create_file create_image
        del_file_with_err dep disable_cpus disk_prepare_timeout disk_usage display drive_cache drive_format drive_index
        drive_rerror drive_serial drive_werror driver_id_cmd driver_id_pattern driver_load_cmd driver_unload_cmd dst_file
        eject_cdrom_cmd enable_random_timeout extra_params file_size file_transfer_client file_transfer_port filesize
        floppies floppy_name floppy_preapre_timeout floppy_prepare_timeout force_create_image force_image_clone
        force_reset_go_down_check get_sar_output_cmd guest_dmesg_level guest_floppy_path guest_path guest_port guest_root
        guest_spec_flags guest_suspend_type helper_test host_mig_offline host_spec_flags host_sync_time_cmd image_boot
        image_clone_command image_format image_name image_raw_device image_remove_command image_size image_snapshot
        images images_good install_cmd install_path iothreads iterations kdump_config kdump_enable_cmd
        kdump_propagate_cmd kdump_restart_cmd kdump_status_cmd keep_ppm_files keep_screendumps kernel_param_cmd
        kill_bg_stress_cmd kill_timeout kill_unresponsive_vms kill_vm kill_vm_gracefully kill_vm_on_error kill_vm_timeout
        load_host_cmd lock_cdrom_cmd login_before_pre_tests login_timeout machine_type main_monitor main_vm
        master_image_name max_downtime max_mig_downtime max_migration_speed max_random_timeout md5sum md5sum_1m
        md5sum_cmd mem mig_cancel mig_downtime mig_offline mig_protocol mig_speed mig_speed_accuracy mig_timeout
        migrate_count migrate_dest_host migrate_main_vm migrate_port migrate_proto migrate_shared_storage
        migrate_source_host migrate_timeout migrate_vms migration_bg_check_command migration_bg_command
        migration_bg_kill_command migration_mode migration_setup migration_sync_vms migration_test_command
        migration_timeout min_migration_speed min_random_timeout module_name monitor_type monitors mount_cdrom_cmd
        mount_dir name need_cleanup need_set_auto_converge need_set_speed need_stress need_to_login netdev_extra_params
        netdst nettype nic_mode nic_model nics not_login_after_mig not_preprocess not_wait_for_migration parameters
        parameters_value password paused_after_start_vm plug_block post_command post_command_noncritical
        post_command_timeout post_sub_test pre_command pre_command_noncritical pre_command_timeout pre_sub_test
        pre_sub_test_timeout preprocess_env profilers qemu_binary qemu_img_binary qxl qxl_dev_nr readonly_test_cmd
        reboot_command reboot_method reboot_timeout redirs regain_ip_cmd remove_file_cmd remove_image
        remove_image_on_check_error repeats restart_vm restore_image restore_image_after_testing
        restore_image_on_check_error reuse_previous_config rtc_drift sar_cmd_in_guest sar_cpu_str sar_log_name
        sar_memory_str save_image second_floppy_name serial_login services_up_timeout set_cache_size shell_client
        shell_port shell_prompt shortname show_mount_cmd shutdown_command skip skip_cluster_leak_warn
        sleep_before_migration smp spice src_file ssh_port ssh_prompt start_migration_timeout start_vm
        start_vm_for_migration steps stress_cmd stress_kill_cmd stress_memory stress_type stressapptest_insatll_cmd
        stressapptest_repo strict_mode sub_test sub_type target_cdrom test_after_load test_control_file test_timeout
        test_type time_command time_diff_limit time_filter_re time_format timeout tmp_dir transfer_speed transfer_timeout
        tray_check_cmd type umount_cdrom_cmd unload_stress_in_the_end unlock_cdrom_cmd unplug_block use_telnet used_mem
        username verify_guest_dmesg verify_host_dmesg virt_test_type vmcore_chk_cmd vms wait_before_stop wait_mig_timeout
        workaround_eject_time";

    #[test]
    fn every_documented_key_is_read_or_is_told_to_be_without_effect_and_why() {
        let list = list();
        let known: BTreeMap<&str, &KeyInfo> = list.iter().map(|info| (info.key.as_str(), info)).collect();
        let unknown: Vec<&str> = DOCUMENTED.split_whitespace().filter(|key| !known.contains_key(key)).collect();
        assert!(unknown.is_empty(), "neither read nor without effect: {unknown:?}");
        for info in &list {
            assert_eq!(info.read_by.is_empty(), info.without_effect.is_some(), "{info:?}");
        }
    }

    #[test]
    fn no_key_is_told_to_be_without_effect_that_is_read() {
        let list = list();
        let read: BTreeSet<&str> =
            list.iter().filter(|info| !info.read_by.is_empty()).map(|info| info.key.as_str()).collect();
        let mut seen = BTreeSet::new();
        for key in WITHOUT_EFFECT.iter().flat_map(|(_, keys)| *keys) {
            assert!(!read.contains(key), "{key} is read");
            assert!(seen.insert(key), "{key} stands there twice");
        }
    }

    /// A key that is told to be read is: a value that it cannot have is refused by its name, or is beyond what is done.
    #[test]
    fn every_key_that_is_read_has_an_effect() {
        // Any text is a value of theirs: what they do is tested beside what reads them.
        const FREE: &[&str] =
            &["password", "clocksource", "capabilitys_state", "host_mig_offline", "plug_block", "unplug_block"];
        // Some are read in one kind of a test only, or where there is something that they are about.
        const WHERE: &[&[(&str, &str)]] = &[
            &[],
            &[("sub_type", "after_migrate")],
            &[("sub_type", "speed")],
            &[("test_type", "test_multi_host_migration_onoff_cpu")],
            &[("images", "image1 stg"), ("create_image_stg", "yes")],
            &[("images", "image1 stg"), ("image_name_stg", "images/base")],
            &[("images", "image1 stg")],
            &[("cdroms", "cd1"), ("cdrom_cd1", "tools")],
            &[("cdroms", "cd1")],
            &[("cdrom", "tools")],
            &[("floppies", "fl")],
        ];
        let origin = || Origin { file: "a.cfg".into(), line: 1 };
        for scenario in ALL {
            // What says which scenario is meant has its effect there.
            let chooses =
                |key: &str| scenario.types.iter().flat_map(|called| called.when).any(|(known, _)| *known == key);
            let listed = scenario.params().map(|(key, ..)| *key).chain(scenario.also_reads());
            for key in listed.filter(|key| !FREE.contains(key) && !chooses(key)) {
                let bites = |given: &&[(&str, &str)]| {
                    let mut params = Params::new();
                    given.iter().for_each(|(known, value)| params.set(*known, *value, origin()));
                    params.set(key, "-?/ = [no value", origin());
                    match (scenario.check)(&params) {
                        Err(error) => error.key == key,
                        Ok(()) => scenario.beyond(&params).is_some(),
                    }
                };
                assert!(WHERE.iter().any(bites), "{} takes any {key}", scenario.name);
            }
        }
    }
}
