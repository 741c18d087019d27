//! Images and pools: which version counts, where it is, and what keeps it.

use vt_protocol::{
    catalogue::{ImageFormat, PlacementState, PoolKind},
    error::ErrorCode::{
        ImageInUse, ImageRefused, NameTaken, PoolInUse, RequestConflict, TooLarge, UnknownImage, UnknownPool,
    },
    ids::{Digest, Name},
};
use vt_sync::{
    bounds,
    command::{AddPool, DropPlacement, PinImage, PlaceImage, RegisterImage, RemoveHost, RemovePool},
    state::{Image, ImageContent},
};

use crate::world::{JOB, World, h};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn register(image: &str, version: &str, host: u64) -> RegisterImage {
    RegisterImage {
        image: name(image),
        pool: name("default"),
        content: ImageContent {
            root: Digest::of(version.as_bytes()),
            format: ImageFormat::Qcow2,
            virtual_bytes: 1 << 30,
            bytes: 1 << 20,
            backing: None,
        },
        host: h(host),
        shared: false,
    }
}

fn upon(image: &str, backing: &str) -> RegisterImage {
    let mut register = register(image, image, 1);
    register.content.backing = Some(name(backing));
    register
}

fn place(image: &str, version: &str, host: u64, state: PlacementState) -> PlaceImage {
    PlaceImage { image: name(image), root: Digest::of(version.as_bytes()), host: h(host), state, shared: false }
}

fn image(world: &World, image: &str) -> Image {
    Image::clone(&world.state.images[&name(image)])
}

#[test]
fn a_new_version_makes_the_copies_of_the_old_one_stale() {
    let mut world = World::running();
    world.ok(register("disk", "v1", 1));
    world.ok(place("disk", "v1", 2, PlacementState::Copying));
    assert!(image(&world, "disk").is_on(h(1)) && !image(&world, "disk").is_on(h(2)), "on its way is not there");
    world.ok(place("disk", "v1", 2, PlacementState::Present));
    assert!(image(&world, "disk").is_on(h(2)));
    world.ok(register("disk", "v2", 3));
    let now = image(&world, "disk");
    assert!(now.is_on(h(3)) && !now.is_on(h(1)) && !now.is_on(h(2)));
    assert_eq!(now.placements[&h(1)].state, PlacementState::Stale);
    assert_eq!(world.no(place("disk", "v1", 2, PlacementState::Present)), RequestConflict, "half a day too late");
    assert_eq!(world.no(place("other", "v1", 2, PlacementState::Present)), UnknownImage);
}

#[test]
fn what_a_vm_or_an_image_lies_upon_is_neither_changed_nor_deleted() {
    let mut world = World::running();
    world.ok(register("guest", "v1", 1));
    world.claim(1);
    assert_eq!(image(&world, "guest").jobs, [JOB]);
    let drop = DropPlacement { image: name("guest"), host: h(1) };
    assert_eq!(world.no(register("guest", "v2", 1)), ImageInUse);
    assert_eq!(world.no(drop.clone()), ImageInUse);
    world.ok(register("guest", "v1", 2));
    world.ok(world.releasing(1));
    world.ok(upon("layer", "guest"));
    assert_eq!(world.no(drop.clone()), ImageInUse);
    world.ok(DropPlacement { image: name("layer"), host: h(1) });
    world.ok(PinImage { image: name("guest"), pinned: true });
    assert_eq!(world.no(drop.clone()), ImageInUse);
    world.ok(PinImage { image: name("guest"), pinned: false });
    world.ok(drop);
    world.ok(DropPlacement { image: name("guest"), host: h(2) });
    assert!(world.state.images.is_empty(), "the last copy takes the image with it");
}

#[test]
fn a_chain_is_known_has_an_end_and_no_loop() {
    let mut world = World::running();
    assert_eq!(world.no(upon("a", "nothing")), UnknownImage);
    assert_eq!(world.no(upon("a", "a")), ImageRefused);
    world.ok(register("i0", "v", 1));
    for n in 1..bounds::BACKING {
        world.ok(upon(&format!("i{n}"), &format!("i{}", n - 1)));
    }
    let last = format!("i{}", bounds::BACKING - 1);
    assert_eq!(world.state.backing_of(&name(&last)).len(), bounds::BACKING - 1);
    assert_eq!(world.no(upon("more", &last)), TooLarge);
    assert_eq!(world.no(upon("i0", "i1")), ImageRefused, "a loop");
}

#[test]
fn a_pool_with_images_stays_and_a_host_that_leaves_takes_its_copies_off_the_record() {
    let mut world = World::running();
    let add = AddPool { pool: name("fast"), kind: PoolKind::Dir, path: "/fast".into(), shared: false };
    world.ok(add.clone());
    world.ok(add.clone());
    assert_eq!(world.no(AddPool { path: "/other".into(), ..add.clone() }), NameTaken);
    assert_eq!(world.no(AddPool { pool: name("default"), ..add }), NameTaken);
    let mut disk = register("disk", "v1", 2);
    disk.pool = name("slow");
    assert_eq!(world.no(disk.clone()), UnknownPool);
    let export = AddPool { pool: name("filer"), kind: PoolKind::Nfs, path: "nfs://10.0.0.9/a".into(), shared: true };
    world.ok(export);
    disk.pool = name("filer");
    assert_eq!(world.no(disk.clone()), ImageRefused, "it takes disks of VMs");
    disk.pool = name("fast");
    world.ok(disk);
    assert_eq!(world.no(RemovePool { pool: name("fast") }), ImageInUse);
    // It serves an attempt: it goes when its session has ended.
    world.expire(2);
    world.ok(RemoveHost { host: h(2) });
    assert!(image(&world, "disk").placements.is_empty(), "it is told that no copy is left");
}

#[test]
fn a_pool_of_one_disk_is_one_vms_at_a_time_and_one_pool_only() {
    let mut world = World::running();
    let lun = AddPool { pool: name("lun"), kind: PoolKind::Iscsi, path: "iscsi://a/iqn.x/1".into(), shared: true };
    world.ok(lun.clone());
    assert_eq!(world.no(AddPool { pool: name("again"), ..lun.clone() }), PoolInUse);
    world.ok(AddPool { pool: name("other"), path: "iscsi://a/iqn.x/2".into(), ..lun.clone() });
    let mut claim = world.claiming(1);
    claim.alone = vec![name("lun")];
    world.ok(claim.clone());
    world.ok(claim.clone());
    let mut second = claim.clone();
    second.vm.name = name("vm2");
    assert_eq!(world.no(second.clone()), PoolInUse);
    assert_eq!(world.no(RemovePool { pool: name("lun") }), PoolInUse);
    second.alone = vec![name("other"), name("other")];
    assert_eq!(world.no(second.clone()), PoolInUse, "twice in one VM");
    second.alone.pop();
    world.ok(second.clone());
    world.ok(world.releasing(1));
    second.vm.name = name("vm3");
    second.alone = vec![name("lun")];
    world.ok(second);
}
