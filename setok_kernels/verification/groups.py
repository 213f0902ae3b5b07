"""Names of the equivalence cases, by the process that runs them.

The cases themselves, `setok_kernels.equivalence.cases`, call the functions whose backend depends on
their outcome. The parent process therefore knows their names only.
"""

# Cases of one group share most of the kernels to compile; groups run in parallel. Compilation takes
# most of the time, so each group has about a quarter of the builds.
GROUPS: dict[str, tuple[str, ...]] = {
    "float32": (
        "exact tokens, masked",
        "packed images",
        "importance and budgets",
        "clustering of float32",
        "gradients of float32",
    ),
    "bfloat16": (
        "clustering of bfloat16",
        "gradients of bfloat16",
        "merging bfloat16",
    ),
    "others": (
        "clustering of float16",
        "clustering of float32, precision high",
        "clustering of float32, precision medium",
        "merging float32",
    ),
    "hard": (
        "many tokens",
        "dpc_knn",
        "threshold_greedy",
    ),
}
