import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Prints decisions as they come: Consume BOOTSTRAP SCHEMAS GROUP. */
public final class Consume {
  private static final ObjectMapper JSON = new ObjectMapper();

  private final String bootstrap;
  private final String group;
  private final Map<String, Schema> schemas = new HashMap<>();
  private final Map<String, String> topics = new HashMap<>();
  // By the id in a record's header: what it was written with.
  private final Map<Integer, Schema> writers = new HashMap<>();
  // The names of features by digest.
  private final Map<String, List<String>> names = new HashMap<>();

  private Consume(String bootstrap, Path folder, String group) throws Exception {
    this.bootstrap = bootstrap;
    this.group = group;
    for (JsonNode entry : JSON.readTree(folder.resolve("schemas.json").toFile())) {
      String file = entry.get("file").asText();
      Schema schema = new Schema.Parser().parse(folder.resolve(file).toFile());
      schemas.put(file, schema);
      topics.put(file, entry.get("topic").asText());
      writers.put(entry.get("fingerprint").asInt(), schema);
      for (JsonNode id : entry.get("registry_ids")) {
        writers.put(id.asInt(), schema);
      }
    }
  }

  public static void main(String[] arguments) throws Exception {
    new Consume(arguments[0], Path.of(arguments[1]), arguments[2]).run();
  }

  private void run() throws Exception {
    readCatalogues();
    try (KafkaConsumer<String, byte[]> consumer = consumer()) {
      consumer.subscribe(List.of(topics.get("decisions.avsc")));
      while (true) {
        for (ConsumerRecord<String, byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
          print(decode(record.value(), "decisions.avsc"));
        }
      }
    }
  }

  private void print(GenericRecord decision) throws Exception {
    String digest = decision.get("catalogue_digest").toString();
    if (!names.containsKey(digest)) {
      readCatalogues();
    }
    FloatBuffer vector = ((ByteBuffer) decision.get("vector")).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
    ObjectNode shown = JSON.createObjectNode();
    shown.put("payment_id", decision.get("payment_id").toString());
    shown.put("action", decision.get("action").toString());
    shown.put("score", (double) decision.get("score"));
    ObjectNode features = shown.putObject("features");
    for (String name : names.getOrDefault(digest, List.of())) {
      float value = vector.get();
      if (!Float.isNaN(value)) {
        features.put(name, value);
      }
    }
    System.out.println(JSON.writeValueAsString(shown));
  }

  /** Reads the whole topic: it is small and compacted. */
  private void readCatalogues() throws Exception {
    try (KafkaConsumer<String, byte[]> consumer = consumer()) {
      List<TopicPartition> partitions = new ArrayList<>();
      for (PartitionInfo one : consumer.partitionsFor(topics.get("catalogues.avsc"))) {
        partitions.add(new TopicPartition(one.topic(), one.partition()));
      }
      consumer.assign(partitions);
      consumer.seekToBeginning(partitions);
      Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
      while (partitions.stream().anyMatch(one -> consumer.position(one) < ends.get(one))) {
        for (ConsumerRecord<String, byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
          GenericRecord catalogue = decode(record.value(), "catalogues.avsc");
          List<String> found = new ArrayList<>();
          for (Object feature : (List<?>) catalogue.get("features")) {
            found.add(((GenericRecord) feature).get("name").toString());
          }
          names.put(catalogue.get("digest").toString(), found);
        }
      }
    }
  }

  /** The record as today's schema has it, whichever schema it was written with. */
  private GenericRecord decode(byte[] value, String file) throws Exception {
    Schema writer = writers.get(ByteBuffer.wrap(value, 1, 4).getInt());
    var decoder = DecoderFactory.get().binaryDecoder(value, 5, value.length - 5, null);
    return new GenericDatumReader<GenericRecord>(writer, schemas.get(file)).read(null, decoder);
  }

  private KafkaConsumer<String, byte[]> consumer() {
    Map<String, Object> settings =
        Map.of(
            "bootstrap.servers", bootstrap,
            "group.id", group,
            "auto.offset.reset", "earliest",
            "enable.auto.commit", true,
            "isolation.level", "read_committed");
    return new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer());
  }
}
