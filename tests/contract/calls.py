"""Every call of Sickbay's to the Kubernetes API, where in the product it is made, and the contract tests that hold it.

`test_calls.py` compares this list with the product's source, with what the product sends when it is driven, and with
the grants in `deploy/`: a new call without a line here, or a line without a test, fails.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGES = frozenset({"limit", "continue"})

_CLUSTER = "remediation/cluster.py:Cluster"
_PODS = "remediation/pod_api.py:KubernetesPods"
_REPAIRS = "remediation/repair_api.py:KubernetesRepairs"
_LEASE = "remediation/lease.py:KubernetesLeaseApi"
_REFLECTOR = "remediation/reflector.py:Reflector"
_WRITER = "exporter/report_writer.py:ReportWriter"
_CHECK = "remediation/repair/check.py"


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `resource` is as in RBAC, with subresource and group; `query` are the keys that it may have.

    `sites` are `FILE:FUNCTION:METHOD`, `tests` are `FILE:TEST` in this folder.
    """

    verb: str
    resource: str
    sites: tuple[str, ...]
    tests: tuple[str, ...]
    patch: str = ""
    query: frozenset[str] = frozenset()


_LIST_TESTS = (
    "test_lists.py:test_every_collection_that_is_watched_can_be_listed",
    "test_lists.py:test_a_list_comes_in_pages_of_one_moment",
    "test_lists.py:test_a_page_that_is_asked_for_too_late_is_gone",
)
_WATCH_TESTS = (
    "test_watches.py:test_a_watch_tells_every_change_since_its_version_in_order",
    "test_watches.py:test_what_is_deleted_comes_whole_with_the_version_of_its_end",
    "test_watches.py:test_a_watch_resumes_after_each_event_without_a_gap_or_a_double",
    "test_watches.py:test_a_watch_gets_a_bookmark_to_resume_from",
    "test_watches.py:test_the_server_ends_a_watch_in_its_time_and_sends_no_bookmark_unasked",
    "test_watches.py:test_a_version_that_is_too_old_is_an_error_event_in_a_watch_that_was_accepted",
)
_GET_TESTS = ("test_objects.py:test_what_is_not_there_is_not_found",)


def _reflected(resource: str) -> tuple[Call, Call]:
    return (
        Call("list", resource, (f"{_REFLECTOR}._list:list_pages",), _LIST_TESTS, query=PAGES),
        Call("watch", resource, (f"{_REFLECTOR}._watch:watch",), _WATCH_TESTS),
    )


CALLS: tuple[Call, ...] = (
    Call(
        "get",
        "/version",
        ("runtime/kubernetes.py:Session.check:get",),
        ("test_discovery.py:test_the_server_says_its_version_and_that_it_is_ready",),
    ),
    *_reflected("acceleratorreports.sickbay.dev"),
    *_reflected("nodes"),
    *_reflected("acceleratorremediations.sickbay.dev"),
    *_reflected("acceleratorcontrols.sickbay.dev"),
    Call("get", "nodes", (f"{_CLUSTER}.get_node:get", f"{_CHECK}:_read:get"), _GET_TESTS),
    Call(
        "patch",
        "nodes",
        (f"{_CLUSTER}.patch_node:merge_patch",),
        (
            "test_nodes.py:test_a_cordon_is_one_atomic_patch_with_its_record",
            "test_nodes.py:test_the_api_keeps_who_has_cordoned_a_node",
            "test_deletions.py:test_a_new_object_of_an_old_name_is_another_one",
        ),
        patch="merge",
        query=frozenset({"fieldManager"}),
    ),
    Call(
        "patch",
        "nodes",
        (f"{_CLUSTER}.remove_taint:json_patch",),
        (
            "test_nodes.py:test_a_taint_is_taken_off_by_its_place_and_at_one_version",
            "test_objects.py:test_a_json_patch_is_carried_out_or_refused_as_a_whole",
        ),
        patch="json",
        query=frozenset({"fieldManager"}),
    ),
    Call(
        "list",
        "acceleratorremediations.sickbay.dev",
        (f"{_CLUSTER}._list:list_pages",),
        ("test_lists.py:test_sessions_are_found_by_the_label_of_their_node", *_LIST_TESTS),
        query=PAGES | {"labelSelector"},
    ),
    Call(
        "get",
        "acceleratorremediations.sickbay.dev",
        (f"{_CLUSTER}.session:get", f"{_CHECK}:_read:get"),
        _GET_TESTS,
    ),
    Call(
        "create",
        "acceleratorremediations.sickbay.dev",
        (f"{_CLUSTER}.create_session:post",),
        (
            "test_objects.py:test_a_session_of_the_same_name_is_taken_too",
            "test_objects.py:test_of_many_who_create_at_once_one_does",
            "test_custom_resources.py:test_spec_and_status_are_written_apart",
            "test_custom_resources.py:test_every_bound_is_refused_and_the_refusal_names_the_field",
        ),
    ),
    Call(
        "patch",
        "acceleratorremediations/status.sickbay.dev",
        (f"{_CLUSTER}.write_status:merge_patch",),
        (
            "test_objects.py:test_a_status_patch_with_an_old_resource_version_is_a_conflict",
            "test_objects.py:test_a_change_of_the_spec_makes_a_status_patch_out_of_date",
            "test_objects.py:test_nulls_in_a_merge_patch_remove_and_lists_are_replaced",
            "test_custom_resources.py:test_every_field_is_kept",
        ),
        patch="merge",
    ),
    Call(
        "delete",
        "acceleratorremediations.sickbay.dev",
        (f"{_CLUSTER}.delete_session:delete",),
        (
            "test_deletions.py:test_a_deletion_holds_for_one_uid",
            "test_deletions.py:test_an_object_without_finalizers_goes_at_once",
        ),
    ),
    Call(
        "get",
        "acceleratorreports.sickbay.dev",
        (f"{_CLUSTER}.report:get", f"{_WRITER}.meet:get"),
        _GET_TESTS,
    ),
    Call(
        "create",
        "acceleratorreports.sickbay.dev",
        (f"{_WRITER}._create:post",),
        (
            "test_objects.py:test_a_name_is_taken_once",
            "test_objects.py:test_a_resource_that_is_not_served_is_a_404_that_is_no_object",
            "test_deletions.py:test_the_report_of_a_node_goes_with_the_node",
        ),
    ),
    Call(
        "patch",
        "acceleratorreports/status.sickbay.dev",
        (f"{_WRITER}._put:merge_patch",),
        (
            "test_objects.py:test_a_status_of_nobody_is_not_found",
            "test_objects.py:test_nulls_in_a_merge_patch_remove_and_lists_are_replaced",
            "test_custom_resources.py:test_what_is_absent_is_filled_in_from_the_definition",
        ),
        patch="merge",
    ),
    Call(
        "update",
        "acceleratorreports/status.sickbay.dev",
        (f"{_WRITER}._put:put",),
        (
            "test_objects.py:test_a_status_that_is_put_is_all_there_is_and_nothing_else_is_touched",
            "test_objects.py:test_a_status_that_is_put_on_an_old_version_or_on_nothing_is_refused",
        ),
    ),
    Call(
        "patch",
        "acceleratorreports.sickbay.dev",
        (f"{_REPAIRS}.order_release:merge_patch",),
        (
            "test_objects.py:test_a_merge_patch_with_an_old_resource_version_is_a_conflict",
            "test_custom_resources.py:test_every_field_is_kept",
        ),
        patch="merge",
    ),
    Call(
        "get",
        "acceleratorcontrols.sickbay.dev",
        (f"{_CLUSTER}.control:get", f"{_CHECK}:_read:get"),
        _GET_TESTS,
    ),
    Call(
        "patch",
        "acceleratorcontrols/status.sickbay.dev",
        (f"{_CLUSTER}.write_start_tokens:merge_patch",),
        ("test_custom_resources.py:test_every_field_is_kept",),
        patch="merge",
    ),
    Call(
        "list",
        "pods",
        (f"{_PODS}.pods_on:list_pages", f"{_PODS}.replacements:list_pages", f"{_REPAIRS}.job:list_pages"),
        (
            "test_lists.py:test_the_pods_of_a_node_are_found_over_all_namespaces",
            "test_repairs.py:test_the_pods_of_a_job_are_found_by_its_label",
            *_LIST_TESTS,
        ),
        query=PAGES | {"fieldSelector", "labelSelector"},
    ),
    Call(
        "create",
        "pods/eviction",
        (f"{_PODS}.evict:post",),
        (
            "test_evictions.py:test_an_evicted_pod_is_deleted_with_its_own_grace_and_says_why",
            "test_evictions.py:test_a_budget_that_is_used_up_refuses_with_its_cause",
            "test_evictions.py:test_a_budget_that_its_controller_has_not_seen_asks_for_patience",
            "test_evictions.py:test_two_budgets_over_one_pod_are_a_500_that_only_its_message_tells_apart",
            "test_evictions.py:test_an_eviction_holds_for_one_uid",
            "test_evictions.py:test_a_pod_that_is_gone_is_not_found",
            "test_evictions.py:test_nothing_is_evicted_or_made_in_a_namespace_that_is_being_deleted",
        ),
    ),
    Call(
        "patch",
        "pods",
        (f"{_PODS}.tell:merge_patch",),
        ("test_objects.py:test_a_status_patch_of_a_pod_with_another_uid_is_refused",),
        patch="merge",
    ),
    Call(
        "create",
        "events",
        (f"{_PODS}._write_event:post",),
        ("test_leases.py:test_an_event_is_one_of_its_name",),
    ),
    Call(
        "delete",
        "pods",
        (f"{_PODS}.delete_pod:delete",),
        (
            "test_deletions.py:test_a_deletion_holds_for_one_uid",
            "test_deletions.py:test_a_bound_pod_has_its_grace_and_its_kubelet_ends_it",
            "test_deletions.py:test_a_pod_that_has_ended_goes_at_once",
        ),
    ),
    Call(
        "get",
        "daemonsets.apps",
        (f"{_PODS}.daemon_set:get",),
        ("test_lists.py:test_controller_revisions_are_listed_with_what_the_plugin_step_reads",),
    ),
    Call(
        "list",
        "controllerrevisions.apps",
        (f"{_PODS}.daemon_set:list_pages",),
        ("test_lists.py:test_controller_revisions_are_listed_with_what_the_plugin_step_reads",),
        query=PAGES,
    ),
    Call(
        "get",
        "leases.coordination.k8s.io",
        (f"{_LEASE}.read:get",),
        ("test_leases.py:test_of_two_who_take_a_lease_one_gets_it", *_GET_TESTS),
    ),
    Call(
        "create",
        "leases.coordination.k8s.io",
        (f"{_LEASE}.create:post",),
        ("test_leases.py:test_of_two_who_create_a_lease_one_does",),
    ),
    Call(
        "update",
        "leases.coordination.k8s.io",
        (f"{_LEASE}.replace:put",),
        (
            "test_leases.py:test_of_two_who_take_a_lease_one_gets_it",
            "test_leases.py:test_many_who_race_for_a_lease_count_each_transition_once",
            "test_leases.py:test_a_lease_keeps_what_it_is_given",
            "test_objects.py:test_a_replacement_of_what_is_gone_does_not_bring_it_back",
        ),
    ),
    Call(
        "get",
        "podtemplates",
        (f"{_REPAIRS}.create_job:get",),
        ("test_repairs.py:test_a_job_is_made_of_a_template_once",),
    ),
    Call(
        "create",
        "jobs.batch",
        (f"{_REPAIRS}.create_job:post",),
        ("test_repairs.py:test_a_job_is_made_of_a_template_once",),
    ),
    Call(
        "get",
        "jobs.batch",
        (f"{_REPAIRS}.job:get",),
        ("test_repairs.py:test_the_pods_of_a_job_are_found_by_its_label",),
    ),
)

KUBELET = frozenset(
    {
        "exporter/sources/kubelet_metrics.py:KubeletMetrics._ask:get",
        "exporter/sources/pods.py:PodsSource._polled:get",
    }
)
"""Asked of the node's own kubelet and not of the API server: tests/unit and tests/lab hold what it answers."""
