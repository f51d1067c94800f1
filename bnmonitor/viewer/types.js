/**
 * The types that the modules share. Nothing here runs.
 *
 * @typedef {object} Statistic  One number per layer or channel.
 * @property {string} name
 * @property {string} label
 * @property {string} unit
 * @property {"health"|"linear"|"log"|"signed"|"share"|"count"} scale
 * @property {string} meaning
 * @property {Record<string, number>} limits  The value from which it stands for a severity.
 * @property {string[]} [judged]  Codes of the rules that compare it with a limit.
 * @property {string[]} [seen]  Codes of other rules whose finding is visible in it.
 * @property {boolean} sampled  Whether it is known on sampled steps only.
 *
 * @typedef {object} Alert  As `bnmonitor.Alert.to_dict` gives it.
 * @property {string} code
 * @property {string} rule
 * @property {"info"|"warning"|"error"} severity
 * @property {string|null} layer
 * @property {string[]} layers
 * @property {number[]} channels
 * @property {number} first_step
 * @property {number} last_step
 * @property {"open"|"cleared"} state
 * @property {number|string} value
 * @property {number|string} threshold
 * @property {string} message
 * @property {string} advice
 * @property {string} url
 *
 * @typedef {object} Incident  As `bnmonitor.results.Incident.to_dict` gives it: one root cause, with all that follows.
 * @property {number} index
 * @property {string} code
 * @property {string} cause
 * @property {"warning"|"error"} severity
 * @property {string} title
 * @property {string} detail
 * @property {string|null} layer
 * @property {string[]} layers
 * @property {number} of_layers  0: not known.
 * @property {number} first_step
 * @property {number} last_step
 * @property {"open"|"resolved"} state
 * @property {Alert[]} evidence  In causal order.
 * @property {string} advice
 * @property {string} url
 *
 * @typedef {object} Layer  What is known of a layer; what is not known is missing or null.
 * @property {string} name
 * @property {number} channels
 * @property {boolean} detailed  Whether there is channel detail.
 * @property {string} [kind]
 * @property {number} [eps]
 * @property {number|null} [momentum]
 * @property {boolean} [training]
 * @property {boolean} [trains]
 * @property {boolean} [affine]
 * @property {boolean} [tracking]
 * @property {string|null} [producer]
 * @property {string[]|null} [consumers]
 *
 * @typedef {object} Box  A black box: the window at the moment an error opened.
 * @property {string} file
 * @property {string} code
 * @property {string|null} layer
 * @property {number} first_step
 *
 * @typedef {object} RunInfo
 * @property {string} name
 * @property {number} layers
 * @property {number} last  Its last step.
 * @property {number} wall  When it was last written to.
 *
 * @typedef {object} Row  A run in the table of runs, as `bnmonitor.history.listing.listed` gives it.
 * @property {string} name
 * @property {string} verdict
 * @property {""|"warning"|"error"} severity  Of its worst open incident.
 * @property {number} open
 * @property {{title: string, severity: string, step: number, layer: string|null}|null} first
 * @property {(number|null)[]} health
 * @property {number|null} lowest
 * @property {number|string|null} loss
 * @property {number} layers
 * @property {[number, number]|null} steps
 * @property {number|string|null} wall
 * @property {Record<string, any>} settings
 *
 * @typedef {object} Page  A page of the manual.
 * @property {string} title
 * @property {string} summary
 * @property {string} url
 * @property {{title: string, blocks: ["text"|"code"|"values", any][]}[]} sections
 *
 * @typedef {object} Index
 * @property {RunInfo[]} runs
 * @property {Statistic[]} statistics
 * @property {Statistic[]} channelStatistics
 * @property {number} columns  The most columns of a slice.
 *
 * @typedef {object} Run
 * @property {string} name
 * @property {Layer[]} layers
 * @property {string[]} metrics
 * @property {number} frames
 * @property {[number, number]} steps  The first and the last.
 * @property {Alert[]} alerts
 * @property {Incident[]} incidents
 * @property {Box[]} boxes
 *
 * @typedef {object} Slice  Rows of numbers over columns; column i stands for the steps (ends[i - 1], ends[i]].
 * @property {number} rows
 * @property {number} columns
 * @property {number[]} ends  Last step of each column.
 * @property {number} before  Where the first column begins.
 * @property {number} frames  How many frames the columns were made of; more than columns if they were thinned.
 * @property {Float32Array} values  Row by row.
 * @property {[number, number]|null} [extent]  Where most values of the whole run lie.
 * @property {string[]} [statistics]  What the rows are, where they are statistics.
 * @property {string[]} [layers]  Of a black box.
 * @property {number[]} [percentiles]  What the rows are, where they are percentiles.
 * @property {number} [channels]  How many rows each statistic has, where they are statistics of channels at one step.
 *
 * @typedef {object} Range
 * @property {number} from
 * @property {number} to
 *
 * @typedef {object} First  What is drawn at first; null where there is no run.
 * @property {Index} index
 * @property {Run|null} run
 * @property {Slice|null} slice
 * @property {Slice|null} course
 *
 * @typedef {object} Source  Where the numbers come from: a server, or the page itself.
 * @property {() => Promise<First|null>} [first]  What is drawn at first, in one answer, if there is such a thing.
 * @property {() => Promise<Index>} index
 * @property {(first: number, most: number) => Promise<{runs: Row[], of: number}>} table
 * @property {(name: string) => Promise<Page|null>} manual  The manual's page of a rule or a cause.
 * @property {(run: string) => Promise<Run>} run
 * @property {(run: string, statistic: string, range: Range|null, bins: number) => Promise<Slice>} slice
 *   A statistic of all layers.
 * @property {(run: string, bins: number) => Promise<Slice|null>} course
 *   Loss and learning rates of all steps.
 * @property {(run: string, layer: string, range: Range|null, bins: number) => Promise<Slice>} layer
 *   All statistics of a layer.
 * @property {(run: string, layer: string, statistic: string, range: Range|null, bins: number) => Promise<Slice|null>}
 *   channels  A statistic of a layer's channels; null if none were written.
 * @property {(run: string, layer: string, statistic: string, range: Range|null, bins: number) => Promise<Slice|null>}
 *   bands  Percentiles of a statistic over a layer's channels.
 * @property {(run: string, layer: string, step: number) => Promise<Slice|null>} at
 *   All statistics of a layer's channels at a step.
 * @property {(run: string, layer: string, channel: number, range: Range|null, bins: number) => Promise<Slice|null>}
 *   channel  All statistics of a channel.
 * @property {(run: string, file: string, layer: string, statistic: string) => Promise<Slice|null>} box
 *   A statistic of a layer's channels in a black box.
 */

export {};
