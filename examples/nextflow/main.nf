// Calls the records of several samples, by the rules of nf-core.
//
//   nextflow run examples/nextflow --input samples.csv --model_type mini -profile docker
//
// samples.csv has the columns sample and sequences.

include { VIRNUCPRO_PREDICT } from './modules/virnucpro/predict/main'

workflow {
    samples = Channel.fromPath(params.input, checkIfExists: true)
        | splitCsv(header: true)
        | map { row -> [[id: row.sample], file(row.sequences, checkIfExists: true)] }
    models = params.models ? file(params.models, checkIfExists: true) : []
    VIRNUCPRO_PREDICT(samples, models)
}
