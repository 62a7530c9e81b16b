version 1.0

# Calls the records of several samples: one job and one GPU for each sample. Push the image that
# containers/Dockerfile makes to a registry that the engine reaches, and name it as `docker`.

workflow virnucpro {
    input {
        Array[File] samples
        String model_type = "500"
        File? models_tar
        String docker = "virnucpro:cuda"
    }

    scatter (sample in samples) {
        call predict {
            input:
                sequences = sample,
                model_type = model_type,
                models_tar = models_tar,
                docker = docker
        }
    }

    output {
        Array[File] records = predict.records
        Array[File] viral = predict.viral
        Array[File] regions = predict.regions
        Array[File?] proviruses = predict.proviruses
        Array[File] pages = predict.page
    }
}

task predict {
    input {
        File sequences
        String model_type = "500"
        File? models_tar
        String options = ""
        String docker = "virnucpro:cuda"
        Int cpu = 8
        Int memory_gb = 30
        Int disk_gb = 100
        Int gpus = 1
    }

    parameter_meta {
        sequences: "FASTA, FASTQ or unmapped BAM, plain or compressed"
        model_type: "mini, 300 or 500"
        models_tar: "made by: virnucpro models download NAMES --to models && tar cf models.tar models; mini needs none"
        options: "further options of virnucpro predict"
    }

    String name = sub(basename(sequences), "\\.(fa|fasta|fna|fq|fastq|bam)(\\.gz)?$", "")

    command <<<
        set -euo pipefail
        # The temporary directories of engines have longer names than a socket may have.
        export TMPDIR=/tmp
        if [[ -n "~{models_tar}" ]]; then
            tar xf "~{models_tar}"
            export VIRNUCPRO_MODELS=$PWD/models
        fi
        # A sample without reads gives tables with a header only.
        virnucpro predict "~{sequences}" --model-type ~{model_type} --output-dir results \
            --prefix "~{name}" --allow-empty --no-progress ~{options}
    >>>

    output {
        File records = "results/~{name}_records.tsv"
        File viral = "results/~{name}_viral.fasta"
        File regions = "results/~{name}_viral_regions.tsv"
        # With the option --regions provirus.
        File? proviruses = "results/~{name}_proviruses.fasta"
        File page = "results/~{name}_report.html"
        File run_file = "results/~{name}_run.json"
    }

    runtime {
        docker: docker
        cpu: cpu
        memory: "~{memory_gb} GB"
        disks: "local-disk ~{disk_gb} SSD"
        gpuType: "nvidia-tesla-t4"
        gpuCount: gpus
        preemptible: 2
        maxRetries: 1
    }
}
