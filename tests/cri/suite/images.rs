//! What an image says about its containers. `tests/cri/images` makes the images.

use sealock_cri_tests::Pod;

#[test]
fn an_images_command_environment_and_directory_are_taken() {
    let pod = Pod::run();
    let output = pod.container(&[]).image("localhost/cri-test:config").output();
    assert_eq!(output.text(), "entry command\nof the image\n/srv");
    let output = pod
        .container(&[])
        .image("localhost/cri-test:config")
        .with(|config| config.args = vec!["other words".to_owned()])
        .env("FROM", "the pod")
        .output();
    assert_eq!(output.text(), "entry other words\nthe pod\n/srv");
}

#[test]
fn an_images_user_and_its_groups_are_taken() {
    let pod = Pod::run();
    let output = pod.sh("id -un; id -G").image("localhost/cri-test:user").output();
    assert_eq!(output.text(), "default-user\n1000 50000");
}

#[test]
fn groups_of_the_pod_are_added_to_those_of_the_image() {
    let pod = Pod::run();
    let output = pod
        .sh("id -G")
        .image("localhost/cri-test:user")
        .security(|security| security.supplemental_groups = vec![4321])
        .output();
    let mut groups: Vec<_> = output.text().split(' ').collect();
    groups.sort_unstable();
    assert_eq!(groups, ["1000", "4321", "50000"]);
}

#[test]
fn an_image_chooses_its_stop_signal() {
    let pod = Pod::run();
    let container = pod
        .sh("trap 'echo usr1; exit 9' USR1; echo up; while :; do sleep 0.1; done")
        .image("localhost/cri-test:config")
        .with(|config| {
            config.args.clone_from(&config.command);
            config.command = vec!["/usr/bin/env".to_owned()];
        })
        .start();
    container.until_logged("up");
    container.stop(60).unwrap();
    assert_eq!(container.status().exit_code, 9);
}

#[test]
fn a_volume_of_the_image_has_the_images_files() {
    let pod = Pod::run();
    let output = pod
        .sh("cat /volume/file; echo more > /volume/new; ls /volume; grep -c ' /volume ' /proc/mounts")
        .image("localhost/cri-test:config")
        .output();
    assert_eq!(output.text(), "from the image\nfile\nnew\n1");
}

#[test]
fn a_program_with_the_set_user_id_bit_has_its_owners_rights_unless_forbidden() {
    let pod = Pod::run();
    for (forbidden, expected) in [(false, 0), (true, 1000)] {
        let output = pod
            .container(&["/bin/effective-user"])
            .image("localhost/cri-test:config")
            .user(1000)
            .security(|security| security.no_new_privs = forbidden)
            .output();
        assert_eq!(output.text(), format!("Effective uid: {expected}"));
    }
}
