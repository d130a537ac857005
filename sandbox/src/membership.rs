//! To which pod a container belongs, and as what: by the annotations of Kubernetes' runtimes.

use serde_json::Value;

use crate::spec::annotation;

/// How containerd, CRI-O and cri-dockerd each name the pod's identifier and the container's type.
const ANNOTATIONS: [(&str, &str); 3] = [
    ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri.container-type"),
    (
        "io.kubernetes.cri-o.SandboxID",
        "io.kubernetes.cri-o.ContainerType",
    ),
    ("io.kubernetes.sandbox.id", "io.kubernetes.docker.type"),
];

/// What they call the type of a pod's own container.
const SANDBOX_TYPES: [&str; 2] = ["sandbox", "podsandbox"];

/// The pod that a container belongs to: its own, when nothing else is said.
#[must_use]
pub fn pod_of<'a>(spec: &'a Value, id: &'a str) -> &'a str {
    ANNOTATIONS
        .iter()
        .find_map(|(pod, _)| annotation(spec, pod).filter(|pod| !pod.is_empty()))
        .unwrap_or(id)
}

/// Whether the container is a pod's own: the "pause" container, which only holds what the others share.
#[must_use]
pub fn is_pods_own(spec: &Value) -> bool {
    ANNOTATIONS
        .iter()
        .find_map(|(_, kind)| annotation(spec, kind))
        .is_some_and(|kind| SANDBOX_TYPES.contains(&kind))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_belongs_to_its_sandbox_or_to_itself() {
        let of = |annotations: Value| pod_of(&json!({"annotations": annotations}), "c1").to_owned();
        for name in [
            "io.kubernetes.cri.sandbox-id",
            "io.kubernetes.cri-o.SandboxID",
            "io.kubernetes.sandbox.id",
        ] {
            assert_eq!(of(json!({name: "p1"})), "p1");
            assert_eq!(of(json!({name: ""})), "c1");
        }
        assert_eq!(pod_of(&json!({}), "c1"), "c1");
    }

    #[test]
    fn a_pods_own_container_is_told_from_the_others() {
        let own = |annotations: Value| is_pods_own(&json!({"annotations": annotations}));
        assert!(own(json!({"io.kubernetes.cri.container-type": "sandbox"})));
        assert!(own(json!({"io.kubernetes.cri-o.ContainerType": "sandbox"})));
        assert!(own(json!({"io.kubernetes.docker.type": "podsandbox"})));
        assert!(!own(json!({"io.kubernetes.cri.container-type": "container"})));
        assert!(!is_pods_own(&json!({})));
    }
}
