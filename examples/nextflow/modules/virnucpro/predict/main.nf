process VIRNUCPRO_PREDICT {
    tag "$meta.id"
    label 'process_high'
    label 'process_gpu'

    container "${params.container}"

    input:
    tuple val(meta), path(sequences)
    path models // the directory of `virnucpro models download NAMES --to models`, or []

    output:
    tuple val(meta), path("*_records.tsv"),       emit: records
    tuple val(meta), path("*_viral.fasta"),       emit: viral
    tuple val(meta), path("*_viral_regions.tsv"), emit: regions
    tuple val(meta), path("*_run.json"),          emit: run
    path "versions.yml",                          emit: versions
    // By ext.args: not with --no-report, only with --regions provirus, and only with --fastq.
    tuple val(meta), path("*_report.html"),      optional: true, emit: page
    tuple val(meta), path("*_proviruses.fasta"), optional: true, emit: proviruses
    tuple val(meta), path("*_viral.fastq"),      optional: true, emit: reads

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${meta.id}"
    def use_models = models ? "export VIRNUCPRO_MODELS=\$PWD/${models}" : ''
    """
    # Work directories have longer names than a socket may have.
    export TMPDIR=/tmp
    export OMP_NUM_THREADS=${task.cpus}
    ${use_models}
    virnucpro predict ${sequences} --output-dir results --prefix ${prefix} \\
        --allow-empty --no-progress ${args}
    mv results/${prefix}_* .

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnucpro: \$(virnucpro --version | cut -d ' ' -f 2 | tr -d ,)
    END_VERSIONS
    """

    stub:
    def prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}_records.tsv ${prefix}_viral.fasta ${prefix}_viral_regions.tsv \\
        ${prefix}_run.json ${prefix}_report.html

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnucpro: stub
    END_VERSIONS
    """
}
